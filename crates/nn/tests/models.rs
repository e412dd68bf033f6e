//! Names, shapes and counts of parameters against torchvision's and the published files'.

use ottava_autograd::{Kind, Leaf, Mode};
use ottava_nn::models::{Architecture, ModelConfig, build};
use ottava_nn::{Error, Module, Network as _, predict};
use ottava_tensor::Tensor;

fn model(name: &str, classes: usize) -> Box<dyn Module> {
    build(name, &ModelConfig { classes, ..ModelConfig::default() }).unwrap()
}

fn names(model: &dyn Module) -> Vec<String> {
    model.leaves().into_iter().map(|(name, _)| name).collect()
}

fn leaf(model: &dyn Module, name: &str) -> Leaf {
    let found = model.leaves().into_iter().find(|(known, _)| known == name);
    found.unwrap_or_else(|| panic!("no {name}")).1
}

#[test]
fn parameter_counts_are_the_published_ones() {
    // torchvision's documentation; the READMEs of the CIFAR and MLPerf Tiny weights.
    let counts = [
        ("resnet18", 1000, 11_689_512),
        ("resnet34", 1000, 21_797_672),
        ("resnet50", 1000, 25_557_032),
        ("resnet101", 1000, 44_549_160),
        ("resnet152", 1000, 60_192_808),
        ("mobilenet_v2", 1000, 3_504_872),
        ("resnet8", 10, 78_186),
        ("resnet20", 10, 269_722),
        ("resnet32", 10, 464_154),
        ("resnet44", 10, 658_586),
        ("resnet56", 10, 853_018),
        ("resnet20b", 10, 272_474),
        ("resnet56b", 10, 855_770),
        ("resnet18_cifar", 10, 11_173_962),
        ("resnet34_cifar", 10, 21_282_122),
        ("resnet50_cifar", 10, 23_520_842),
    ];
    for (name, classes, count) in counts {
        assert_eq!(model(name, classes).parameter_count(), count, "{name}");
    }
}

#[test]
fn resnet18_has_torchvisions_names_in_torchvisions_order() {
    let model = model("resnet18", 1000);
    let names = names(&*model);
    assert_eq!(names.len(), 102); // 122 in PyTorch, less 20 counters
    let norm = |of: &str| {
        ["weight", "bias", "running_mean", "running_var"].map(|leaf| format!("{of}.{leaf}"))
    };
    let mut block = vec!["layer2.0.conv1.weight".to_owned()];
    block.extend(norm("layer2.0.bn1"));
    block.push("layer2.0.conv2.weight".into());
    block.extend(norm("layer2.0.bn2"));
    block.push("layer2.0.downsample.0.weight".into());
    block.extend(norm("layer2.0.downsample.1"));
    block.push("layer2.1.conv1.weight".into());
    let start = names.iter().position(|name| name.starts_with("layer2")).unwrap();
    assert_eq!(names[start..start + block.len()], block);
    assert_eq!(names[..2], ["conv1.weight", "bn1.weight"]);
    assert_eq!(names[100..], ["fc.weight", "fc.bias"]);
    assert!(!names.iter().any(|name| name.starts_with("layer1.0.downsample")));

    let shape = |name| leaf(&*model, name).get().shape().to_vec();
    assert_eq!(shape("conv1.weight"), [64, 3, 7, 7]);
    assert_eq!(shape("layer4.0.downsample.0.weight"), [512, 256, 1, 1]);
    assert_eq!(shape("fc.weight"), [1000, 512]);
    assert_eq!(leaf(&*model, "bn1.running_var").kind(), Kind::Buffer);
    assert_eq!(leaf(&*model, "bn1.weight").kind(), Kind::Param);
}

#[test]
fn resnet50_is_made_of_bottlenecks() {
    let model = model("resnet50", 1000);
    let shape = |name| leaf(&*model, name).get().shape().to_vec();
    assert_eq!(shape("layer1.0.downsample.0.weight"), [256, 64, 1, 1]);
    assert_eq!(shape("layer3.5.conv2.weight"), [256, 256, 3, 3]);
    assert_eq!(shape("layer4.2.bn3.running_mean"), [2048]);
    assert_eq!(names(&*model).len(), 267); // 320 in PyTorch, less 53 counters
}

#[test]
fn cifar_resnets_have_parameter_free_shortcuts_and_a_linear() {
    let model = model("resnet20", 10);
    let names = names(&*model);
    assert_eq!(names.len(), 19 * 5 + 2);
    assert!(names.iter().all(|name| !name.contains("downsample")));
    assert_eq!(names[95..], ["linear.weight", "linear.bias"]);
    assert_eq!(leaf(&*model, "layer3.2.conv2.weight").get().shape(), [64, 64, 3, 3]);
}

#[test]
fn resnet8_has_biases_and_no_norm_in_its_shortcuts() {
    let model = model("resnet8", 10);
    let names = names(&*model);
    assert_eq!(names.len(), 7 * 6 + 2 * 2 + 2);
    assert_eq!(names[..2], ["conv1.weight", "conv1.bias"]);
    let shortcut: Vec<&String> = names.iter().filter(|name| name.contains("downsample")).collect();
    let expected = ["layer2.0", "layer3.0"]
        .into_iter()
        .flat_map(|block| ["weight", "bias"].map(|leaf| format!("{block}.downsample.0.{leaf}")));
    assert!(shortcut.into_iter().eq(&expected.collect::<Vec<_>>()));
}

/// A block and its shortcut would disagree, or agree by broadcasting.
#[test]
fn resnet8_refuses_sizes_that_its_padding_does_not_fit() {
    let model = model("resnet8", 10);
    for (size, fits) in [([8, 12], true), ([3, 3], false), ([6, 8], false), ([8, 5], false)] {
        let images = Tensor::zeros(&[1, 3, size[0], size[1]]);
        let result = predict(&*model, Mode::EVAL, images);
        match fits {
            true => assert_eq!(result.unwrap().shape(), [1, 10]),
            false => assert!(result.unwrap_err().to_string().contains("4 divides"), "{size:?}"),
        }
    }
}

#[test]
fn mobilenet_has_torchvisions_nesting() {
    let model = model("mobilenet_v2", 1000);
    let shape = |name| leaf(&*model, name).get().shape().to_vec();
    assert_eq!(shape("features.0.0.weight"), [32, 3, 3, 3]);
    assert_eq!(shape("features.1.conv.0.0.weight"), [32, 1, 3, 3]);
    assert_eq!(shape("features.1.conv.1.weight"), [16, 32, 1, 1]);
    assert_eq!(shape("features.17.conv.1.0.weight"), [960, 1, 3, 3]);
    assert_eq!(shape("features.17.conv.3.running_var"), [320]);
    assert_eq!(shape("features.18.0.weight"), [1280, 320, 1, 1]);
    assert_eq!(shape("classifier.1.weight"), [1000, 1280]);
    assert_eq!(names(&*model).len(), 262); // 314 in PyTorch, less 52 counters
}

#[test]
fn grey_images_change_the_first_layer_only() {
    for name in ["resnet18", "resnet50", "resnet20", "resnet8", "mobilenet_v2"] {
        let architecture: Architecture = name.parse().unwrap();
        let config = ModelConfig { in_channels: 1, ..ModelConfig::default() };
        let (grey, colour) = (architecture.build(&config), model(name, 10));
        let shapes = |model: &dyn Module| {
            model.leaves().into_iter().map(|(_, leaf)| leaf.get().shape().to_vec())
        };
        let (grey, colour) = (Vec::from_iter(shapes(&*grey.unwrap())), shapes(&*colour));
        assert_eq!(grey[0][1], 1, "{name}");
        assert!(grey.into_iter().skip(1).eq(colour.skip(1)), "{name}");
    }
}

#[test]
fn a_seed_is_a_network() {
    let build = |seed| {
        let config = ModelConfig { seed, ..ModelConfig::default() };
        build("resnet20", &config).unwrap().state_dict()
    };
    assert_eq!(build(1), build(1));
    assert_ne!(build(1), build(2));
}

#[test]
fn residual_branches_may_start_at_zero() {
    let config = ModelConfig { zero_init_residual: true, ..ModelConfig::default() };
    for (name, last) in [("resnet18", "bn2"), ("resnet50", "bn3"), ("resnet20", "bn2")] {
        let model = build(name, &config).unwrap();
        let weight = leaf(&*model, &format!("layer2.1.{last}.weight")).get();
        assert!(weight.iter().all(|w| w == 0.0), "{name}");
        assert!(leaf(&*model, "layer2.1.bn1.weight").get().iter().all(|w| w == 1.0), "{name}");
    }
}

#[test]
fn the_classifier_reads_as_many_features_as_is_said() {
    for architecture in Architecture::ALL {
        let model = architecture.build(&ModelConfig::default()).unwrap();
        let (_, weight) =
            model.parameters().into_iter().rfind(|(_, leaf)| leaf.get().rank() == 2).unwrap();
        assert_eq!(weight.get().shape(), [10, architecture.features()], "{architecture}");
    }
}

#[test]
fn impossible_networks_are_refused() {
    let Err(Error::Unknown { known, .. }) = build("resnet19", &ModelConfig::default()) else {
        panic!("resnet19 exists");
    };
    assert!(known.contains(&"resnet18") && known.contains(&"mobilenet_v2"));
    for config in [
        ModelConfig { classes: 0, ..ModelConfig::default() },
        ModelConfig { in_channels: usize::MAX, ..ModelConfig::default() },
    ] {
        assert!(matches!(build("resnet18", &config), Err(Error::Config { .. })));
    }
}
