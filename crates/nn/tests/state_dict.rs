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
fn what_training_wrappers_put_before_all_names_is_not_looked_at() {
    let config = ModelConfig::default();
    let [a, b] = [1, 2].map(|seed| build("resnet8", &ModelConfig { seed, ..config }).unwrap());
    for wrapper in ["module.", "_orig_mod.", "model.", "module._orig_mod.", "encoder.net."] {
        let state = a.state_dict().into_iter().map(|(name, x)| (format!("{wrapper}{name}"), x));
        b.load_state_dict(build("resnet8", &config).unwrap().state_dict()).unwrap();
        b.load_state_dict(state.collect()).unwrap();
        assert_eq!(a.state_dict(), b.state_dict(), "{wrapper}");
    }
    // A name that all have is no wrapper if the network has it too.
    let part: Vec<_> =
        a.state_dict().into_iter().filter(|(name, _)| name.starts_with("fc.")).collect();
    let mismatch = b.load_matching(part);
    assert!(mismatch.unexpected.is_empty() && mismatch.misshapen.is_empty());
}

/// Loads a network's values under the names that `theirs` makes of ours.
fn loads_by(architecture: &str, theirs: impl Fn(&str) -> String) {
    let [a, b] = [1, 2]
        .map(|seed| build(architecture, &ModelConfig { seed, ..ModelConfig::default() }).unwrap());
    let state = a.state_dict().into_iter().map(|(name, x)| (theirs(&name), x));
    b.load_state_dict(state.collect()).unwrap();
    assert_eq!(a.state_dict(), b.state_dict());
}

#[test]
fn other_peoples_names_of_our_layers_are_understood() {
    loads_by("resnet18_cifar", |name| {
        name.replace("downsample", "shortcut").replace("fc.", "linear.")
    });
    loads_by("resnet20b", |name| name.replace("linear.", "fc."));
    loads_by("resnet20b", |name| format!("module.{}", name.replace("downsample", "shortcut")));
}

#[test]
fn timms_mobilenet_is_understood() {
    // Its blocks by stage: 1, 2, 3, 4, 3, 3, 1 of them.
    let stages = [1, 2, 3, 4, 3, 3, 1].into_iter().enumerate();
    let blocks: Vec<String> = stages
        .flat_map(|(stage, blocks)| (0..blocks).map(move |i| format!("blocks.{stage}.{i}")))
        .collect();
    loads_by("mobilenet_v2", |name| {
        let parts: Vec<&str> = name.split('.').collect();
        match &parts[..] {
            ["features", "0", "0", leaf] => format!("conv_stem.{leaf}"),
            ["features", "0", "1", leaf] => format!("bn1.{leaf}"),
            ["features", "18", "0", leaf] => format!("conv_head.{leaf}"),
            ["features", "18", "1", leaf] => format!("bn2.{leaf}"),
            ["classifier", "1", leaf] => format!("classifier.{leaf}"),
            ["features", block, "conv", layer @ .., leaf] => {
                let block: usize = block.parse().unwrap();
                let layers: &[[&str; 2]] = match block {
                    1 => &[["0.0", "conv_dw"], ["0.1", "bn1"], ["1", "conv_pw"], ["2", "bn2"]],
                    _ => &[
                        ["0.0", "conv_pw"],
                        ["0.1", "bn1"],
                        ["1.0", "conv_dw"],
                        ["1.1", "bn2"],
                        ["2", "conv_pwl"],
                        ["3", "bn3"],
                    ],
                };
                let layer = layer.join(".");
                let [_, theirs] = layers.iter().find(|[ours, _]| *ours == layer).unwrap();
                format!("{}.{theirs}.{leaf}", blocks[block - 1])
            }
            _ => panic!("{name}"),
        }
    });
}

#[test]
fn a_synonym_does_not_replace_what_is_there() {
    let config = ModelConfig::default();
    let network = build("resnet20b", &config).unwrap();
    let mut state = network.state_dict();
    state.push(("fc.bias".into(), Tensor::zeros(&[10])));
    let Err(Error::State { mismatch, .. }) = network.load_state_dict(state) else {
        panic!("two biases for one");
    };
    assert_eq!(mismatch.unexpected.len(), 1, "{mismatch}");
    assert_eq!(mismatch.unexpected[0].name, "fc.bias");
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
    state.push(("norm1.bias".into(), Tensor::zeros(&[16])));
    state.iter_mut().find(|(name, _)| name == "fc.weight").unwrap().1 = Tensor::zeros(&[100, 64]);

    let error = model.load_state_dict(state.clone()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the tensors do not fit this network: 2 missing, 2 unexpected, 1 of another shape; missing \
         \"bn1.bias\" [16] (is it \"norm1.bias\" in the file?); missing \"fc.bias\" [10] (is it \"norm1.bias\" in the file?); unexpected \
         \"stem.weight\" [1]; unexpected \"norm1.bias\" [16] (is it \"bn1.bias\" in the network?); \
         \"fc.weight\" is [100, 64] in the file and [10, 64] in the network"
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
