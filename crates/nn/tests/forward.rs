//! Every model runs, forward and back, as a module and as a graph.

use ottava_autograd::{Mode, Tape};
use ottava_nn::models::{Architecture, ModelConfig};
use ottava_nn::{Network as _, init, trace};

#[test]
fn every_model_answers_and_gives_every_parameter_a_gradient() {
    for &architecture in Architecture::ALL {
        if matches!(architecture, Architecture::ResNet101 | Architecture::ResNet152) {
            continue; // ResNet-50 with more of the same blocks
        }
        let config = ModelConfig { classes: 7, in_channels: 1, ..ModelConfig::default() };
        let model = architecture.build(&config).unwrap();
        let images = init::normal(&[2, 1, 36, 36], 1.0, &mut init::rng(1));

        let tape = Tape::new(Mode::TRAIN);
        let logits = model.run(tape.input(images.clone())).unwrap();
        assert_eq!(logits.shape(), [2, 7], "{architecture}");
        let gradients = logits.cross_entropy(&[0, 3], 0.0).unwrap().backward().unwrap();
        for (name, leaf) in model.parameters() {
            let gradient = gradients.get(&leaf).unwrap_or_else(|| panic!("{architecture}: {name}"));
            assert_eq!(gradient.shape(), leaf.get().shape(), "{architecture}: {name}");
            assert!(gradient.iter().all(f32::is_finite), "{architecture}: {name}");
        }

        let graph = trace(&*model, &images).unwrap();
        let names = |leaves: Vec<(String, _)>| leaves.into_iter().map(|(name, _)| name);
        assert!(names(graph.leaves()).eq(names(model.leaves())), "{architecture}");
    }
}

#[test]
fn residual_blocks_with_a_zero_branch_pass_their_input_on() {
    let config = ModelConfig { zero_init_residual: true, ..ModelConfig::default() };
    let model = Architecture::ResNet20.build(&config).unwrap();
    // bn2 is zero in all blocks: the last convolutions cannot matter, and get no gradient.
    let tape = Tape::new(Mode::TRAIN);
    let images = init::normal(&[2, 3, 16, 16], 1.0, &mut init::rng(1));
    let loss = model.run(tape.input(images)).unwrap().cross_entropy(&[1, 2], 0.1).unwrap();
    let gradients = loss.backward().unwrap();
    for (name, leaf) in model.parameters() {
        let zero = gradients.get(&leaf).unwrap().iter().all(|g| g == 0.0);
        let within = name.contains("conv2") || name.contains("layer") && !name.contains("bn2");
        assert_eq!(zero, within, "{name}");
    }
}
