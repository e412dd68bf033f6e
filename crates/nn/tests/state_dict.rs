//! Weights out of one network and into another.

use ottava_nn::models::{ModelConfig, build};
use ottava_nn::{Error, Misshapen, Network as _};
use ottava_tensor::Tensor;

#[test]
fn a_state_dict_makes_two_networks_equal() {
    let [a, b] = [1, 2]
        .map(|seed| build("resnet8", &ModelConfig { seed, ..ModelConfig::default() }).unwrap());
    let mut state = a.state_dict();
    state.push(("bn1.num_batches_tracked".into(), Tensor::scalar(7.0)));
    state.reverse(); // names count, order does not
    b.load_state_dict(state).unwrap();
    assert_eq!(a.state_dict(), b.state_dict());
}

#[test]
fn a_loaded_network_does_not_follow_the_one_it_came_from() {
    let config = ModelConfig::default();
    let [a, b] = [build("resnet8", &config).unwrap(), build("resnet8", &config).unwrap()];
    b.load_state_dict(a.state_dict()).unwrap();
    let (_, first) = a.leaves().swap_remove(0);
    first.update(|weight| weight.data_mut().fill(3.0));
    assert_ne!(a.state_dict(), b.state_dict());
}

#[test]
fn everything_that_does_not_fit_is_named_and_nothing_changes() {
    let model = build("resnet8", &ModelConfig::default()).unwrap();
    let before = model.state_dict();
    let mut state: Vec<_> = model
        .state_dict()
        .into_iter()
        .map(|(name, value)| (name, value.map(|x| x + 1.0)))
        .collect();
    state.retain(|(name, _)| name != "bn1.bias" && name != "fc.bias");
    state.push(("stem.weight".into(), Tensor::zeros(&[1])));
    state.iter_mut().find(|(name, _)| name == "fc.weight").unwrap().1 = Tensor::zeros(&[100, 64]);

    let error = model.load_state_dict(state.clone()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the tensors do not fit this network: missing: bn1.bias, fc.bias; unexpected: stem.weight; \
         of another shape: fc.weight is [100, 64] instead of [10, 64]"
    );
    let Error::State { mismatch, .. } = error else { panic!("{error}") };
    let misshapen =
        Misshapen { name: "fc.weight".into(), expected: vec![10, 64], found: vec![100, 64] };
    assert_eq!(mismatch.misshapen, [misshapen]);
    assert_eq!(model.state_dict(), before);

    // What fits can be had all the same.
    assert_eq!(model.load_matching(state), mismatch);
    let changed = model.state_dict().into_iter().zip(before).filter(|(a, b)| a != b).count();
    assert_eq!(changed, model.leaves().len() - 3);
}
