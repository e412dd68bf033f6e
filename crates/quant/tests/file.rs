//! Files: what other tools read of ours, what we refuse of a stranger's, and how large they are.

mod networks;

use networks::{Dice, random, resnet};
use ottava_quant::{Activation, Container, Engine, Error, FloatOp, Instr, Program, QuantizedLayer};
use ottava_tensor::Tensor;
use proptest::prelude::*;
use safetensors::SafeTensors;

fn bytes_of(program: &Program) -> Vec<u8> {
    program.to_container().unwrap().to_bytes()
}

/// Everything a user does with a file, as far as it gets.
fn open(bytes: Vec<u8>) -> Result<Program, Error> {
    let program = Program::from_container(&Container::read(bytes)?)?;
    program.summary();
    Engine::new(&program)?.workspace_bytes(3)?;
    Ok(program)
}

proptest! {
    #[test]
    fn safetensors_opens_what_we_write(seed: u64, nodes in 1usize..14) {
        let program = random(seed, nodes);
        let bytes = bytes_of(&program);
        let theirs = SafeTensors::deserialize(&bytes).unwrap();
        let ours = Container::read(bytes.clone()).unwrap();
        prop_assert_eq!(theirs.len(), ours.tensors().len());
        for (name, entry) in ours.tensors() {
            let view = theirs.tensor(name).unwrap();
            prop_assert_eq!(view.shape(), entry.shape());
            prop_assert_eq!(view.data(), entry.bytes());
            let address = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
            prop_assert_eq!(address % entry.dtype().size(), 0);
        }
        let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        prop_assert_eq!((header + 8) % 64, 0);
        prop_assert_eq!(metadata.metadata().as_ref().unwrap()["format"].as_str(), "ottava");
    }

    #[test]
    fn we_open_what_safetensors_writes(shapes in prop::collection::vec((0usize..4, 0usize..4), 0..5)) {
        let data: Vec<f32> = (0..16).map(|x| x as f32).collect();
        let data: &[u8] = bytemuck::cast_slice(&data);
        let views = shapes.iter().enumerate().map(|(i, &(a, b))| {
            let data = &data[..a * b * 4];
            (format!("t{i}"), safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![a, b], data).unwrap())
        });
        let bytes = safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap();
        let container = Container::read(bytes).unwrap();
        for (i, (a, b)) in shapes.into_iter().enumerate() {
            let tensor = container.get::<f32>(&format!("t{i}")).unwrap();
            prop_assert_eq!(tensor.shape(), [a, b]);
            prop_assert_eq!(tensor.to_vec(), Vec::from_iter((0..a * b).map(|x| x as f32)));
        }
    }

    #[test]
    fn a_file_cut_off_anywhere_is_refused(seed: u64, nodes in 1usize..8, at in 0.0f64..1.0) {
        let mut bytes = bytes_of(&random(seed, nodes));
        bytes.truncate((bytes.len() as f64 * at) as usize);
        let error = open(bytes).unwrap_err();
        prop_assert!(!error.to_string().is_empty());
    }

    #[test]
    fn a_damaged_file_is_refused_or_read_and_never_panics(
        seed: u64,
        nodes in 1usize..8,
        damage in prop::collection::vec((0.0f64..1.0, any::<u8>(), 0..3), 1..6),
    ) {
        let mut bytes = bytes_of(&random(seed, nodes));
        for (at, byte, kind) in damage {
            let at = (bytes.len() as f64 * at) as usize;
            match kind {
                0 => bytes[at] = byte,
                1 => bytes[at] ^= 1 << (byte % 8),
                _ => drop(bytes.remove(at)),
            }
        }
        let _ = open(bytes);
    }

    /// Damage aimed at the graph: numbers and words exchanged inside the JSON, the length kept right.
    #[test]
    fn a_damaged_graph_is_refused_or_read_and_never_panics(
        seed: u64,
        nodes in 1usize..8,
        damage in prop::collection::vec((0.0f64..1.0, 0usize..12), 1..4),
    ) {
        let mut container = random(seed, nodes).to_container().unwrap();
        let mut graph = container.metadata()["program"].clone().into_bytes();
        const WORDS: [&str; 12] = [
            "0", "-1", "18446744073709551615", "99999999999999999999", "1e999", "NaN", "[", "]", "\"",
            "1000000", "2147483647", "conv",
        ];
        for (at, word) in damage {
            let at = (graph.len() as f64 * at) as usize;
            // Replace the number there, if there is one: most damage should get past the parser.
            let start = graph[..at].iter().rposition(|b| !b.is_ascii_digit()).map_or(0, |i| i + 1);
            let len = graph[at..].iter().take_while(|b| b.is_ascii_digit()).count();
            graph.splice(start..at + len, WORDS[word].bytes());
        }
        let graph = String::from_utf8(graph).unwrap();
        container.metadata_mut().insert("program".into(), graph);
        let _ = open(container.to_bytes());
    }

    #[test]
    fn any_text_for_a_header_is_refused_or_read(text in "[\\[\\]{}:,\"a-z0-9 ]{0,40}") {
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text.bytes());
        let _ = open(bytes);
    }
}

#[test]
fn hostile_files_are_named_for_what_they_are() {
    let container = |header: &str, data: &[u8]| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.bytes().chain(data.iter().copied()));
        Container::read(bytes).map(|_| ()).map_err(|error| error.to_string())
    };
    let refused = |header: &str, data: &[u8], words: &str| {
        let error = container(header, data).unwrap_err();
        assert!(error.contains(words), "{error}");
    };
    assert_eq!(container("{}", &[]), Ok(()));
    refused("{}", &[0], "1 bytes behind the last tensor");
    let tensor = |dtype: &str, shape: &str, range: &str| {
        format!("{{\"w\":{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":{range}}}}}")
    };
    assert_eq!(container(&tensor("I8", "[2,2]", "[0,4]"), &[0; 4]), Ok(()));
    refused(&tensor("I8", "[2,2]", "[0,5]"), &[0; 4], "of which the file has 4");
    refused(&tensor("I8", "[2,2]", "[3,2]"), &[0; 4], "3..2");
    refused(&tensor("I8", "[2,2]", "[1,5]"), &[0; 5], "begin at");
    refused(&tensor("F32", "[2,2]", "[0,4]"), &[0; 4], "does not fit its 4 bytes");
    refused(&tensor("I8", "[4611686018427387904,4]", "[0,0]"), &[], "does not fit");
    refused(&tensor("I8", "[18446744073709551615,0]", "[0,0]"), &[], "does not fit");
    refused(&tensor("I8", "[18446744073709551616]", "[0,0]"), &[], "expected a number");
    refused(&tensor("I8", "[1,1,1,1,1,1,1,1,1]", "[0,1]"), &[0], "more than 8");
    refused(&tensor("Q4", "[1]", "[0,1]"), &[0], "Q4");
    refused("{\"w\":{}}", &[], "needs a dtype");
    refused("{\"w\":1}", &[], "expected '{'");
    refused("{\"__metadata__\":{\"a\":1}}", &[], "expected '\"'");
    refused("{\"__metadata__\":{\"format\":\"ottava\",\"version\":\"2\"}}", &[], "version \"2\"");
    assert!(Container::read(vec![0; 7]).unwrap_err().to_string().contains("too few"));
    let long = [u64::MAX.to_le_bytes().as_slice(), b"{}"].concat();
    assert!(Container::read(long).unwrap_err().to_string().contains("cut off"));
    assert!(
        Container::read([1u8, 0, 0, 0, 0, 0, 0, 0, 0xFF])
            .unwrap_err()
            .to_string()
            .contains("UTF-8")
    );
}

#[test]
fn hostile_graphs_are_named_for_what_they_are() {
    let refused = |edit: &dyn Fn(&mut Container), words: &str| {
        let mut container = resnet(1, 4, 8).to_container().unwrap();
        edit(&mut container);
        let error = open(container.to_bytes()).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    let graph = |from: &'static str, to: &'static str| {
        move |container: &mut Container| {
            let graph = container.metadata_mut().get_mut("program").unwrap();
            assert!(graph.contains(from), "{graph}");
            *graph = graph.replacen(from, to, 1);
        }
    };
    refused(&graph("\"in\":[4,2]", "\"in\":[4,5]"), "value 5"); // reads itself
    refused(&graph("\"in\":[4,2]", "\"in\":[4,99]"), "value 99");
    refused(&graph("\"op\":\"add\"", "\"op\":\"sub\""), "\"sub\"");
    refused(&graph("\"relu\"", "\"gelu\""), "newer version");
    refused(&graph("\"stride\":2", "\"stride\":0"), "stride");
    refused(
        &graph("\"op\":\"add\"", "\"op\":\"add\",\"stride\":2"),
        "\"add\" has no field \"stride\"",
    );
    refused(&graph("\"output\":", "\"output\":1"), "none of the values");
    refused(&graph("add.5", "conv.4"), "conv.4");
    refused(&graph("\"grid\":[0.03,0]", "\"grid\":[0.0,0]"), "scale");
    refused(&graph("\"grid\":[0.03,0]", "\"grid\":[0.03,0.5]"), "no code");
    refused(&graph("\"grid\":[0.03,0]", "\"grid\":[0.03]"), "2 or 4");
    refused(&|container| drop(container.metadata_mut().remove("program")), "no integer program");
    refused(
        &|container| {
            let scales = Tensor::new(&[4], [1.0, f32::NAN, 1.0, 1.0]).unwrap();
            container.put("conv.2.scale", &scales).unwrap();
        },
        "channel 1: weight scale NaN",
    );
    refused(
        &|container| container.put("conv.2.bias", &Tensor::<f32>::zeros(&[4])).unwrap(),
        "F32, but I32",
    );
    refused(
        &|container| container.put("conv.2.weight", &Tensor::<i8>::zeros(&[4, 2, 3, 3])).unwrap(),
        "conv.2",
    );
    refused(
        &|container| {
            let nodes = "{},".repeat(70_000) + "{}";
            let graph = format!("{{\"input\":[1,1,1],\"nodes\":[{nodes}],\"output\":1}}");
            container.metadata_mut().insert("program".into(), graph);
        },
        "more than 65536",
    );
}

#[test]
fn an_int8_resnet_is_a_quarter_of_its_float_file() {
    for (blocks, width) in [(1, 16), (3, 16), (5, 16)] {
        let program = resnet(blocks, width, 32);
        // A float checkpoint has each layer's weight and its BatchNorm's four vectors.
        let mut float = Container::default();
        for node in program.nodes() {
            if let Some(QuantizedLayer { codes, scales, .. }) = node.instr.layer() {
                float.put(format!("{}.weight", node.name), &codes.map(f32::from)).unwrap();
                let vector = Tensor::new(&[scales.len()], scales).unwrap();
                for name in ["weight", "bias", "running_mean", "running_var"] {
                    float.put(format!("{}.bn.{name}", node.name), &vector).unwrap();
                }
            }
        }
        let (int8, float) = (bytes_of(&program).len(), float.to_bytes().len());
        assert!(int8 as f64 <= 0.27 * float as f64, "{int8} of {float} bytes");
        let summary = program.summary();
        assert!(summary.bytes <= int8 && summary.bytes * 10 > int8 * 9);
    }
}

#[test]
fn four_bit_weights_take_half_a_byte() {
    let mut dice = Dice(9);
    let mut builder = Program::builder(&[33]).unwrap();
    let grid = ottava_quant::QParams::new(0.05, 128, 0..=255).unwrap();
    let x = builder.push("in", Instr::Quantize(grid), &[builder.input()]).unwrap();
    let layer = dice.layer(&[63, 33], 7);
    let x = builder
        .push("fc", Instr::Linear { layer, output: grid, activation: Activation::NONE }, &[x])
        .unwrap();
    let program = builder.finish(x).unwrap();
    let container = program.to_container().unwrap();
    assert_eq!(container.tensors()["fc.weight"].bytes().len(), (63 * 33usize).div_ceil(2));
    assert_eq!(program.summary().nodes[1].weight_bits, 4);
    assert_eq!(open(container.to_bytes()).unwrap(), program);
}

/// Names of the file's own are no metadata of a program, read or written.
#[test]
fn metadata_of_the_file_stay_the_files() {
    for name in ["program", "format", "version"] {
        let mut program = resnet(1, 4, 8);
        program.metadata_mut().insert(name.into(), "2.1".into());
        let error = program.to_container().unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("own"), "{error}");
    }
    let mut container = resnet(1, 4, 8).to_container().unwrap();
    container.metadata_mut().insert("version".into(), "2.1".into());
    assert_eq!(Program::from_container(&container).unwrap(), resnet(1, 4, 8));
}

/// A program of many nodes is packed in a moment, and one of absurd values refused, whatever its file
/// weighs.
#[test]
fn small_programs_do_not_ask_for_much() {
    let mut builder = Program::builder(&[1]).unwrap();
    let mut x = builder.input();
    for i in 0..20_000 {
        x = builder.push(format!("relu{i}"), Instr::Clip(Activation::RELU), &[x]).unwrap();
    }
    Engine::new(&builder.finish(x).unwrap()).unwrap();

    let mut builder = Program::builder(&[1, 1, 1]).unwrap();
    let wide: Vec<_> = (0..9)
        .map(|i| {
            let pad = Instr::Pad { axis: 2, before: 0, after: (1 << 28) - 1 - i };
            builder.push(format!("pad{i}"), pad, &[builder.input()]).unwrap()
        })
        .collect();
    let ends: Vec<_> = wide
        .iter()
        .enumerate()
        .map(|(i, &x)| {
            let slice = Instr::Slice { axis: 2, start: 0, end: 1, step: 1 };
            builder.push(format!("slice{i}"), slice, &[x]).unwrap()
        })
        .collect();
    let all = builder.push("all", Instr::Concat { axis: 1, output: None }, &ends).unwrap();
    let error = Engine::new(&builder.finish(all).unwrap()).err().unwrap();
    assert!(matches!(error, Error::Workspace { .. }), "{error}");
}

/// A file has one range of codes for a rounding: what it could not hold is refused when it is built.
#[test]
fn rounding_has_one_range_of_codes() {
    let grid = |most: i32| ottava_quant::QParams::new(0.5, 0, -most..=most).unwrap();
    let build = |grids: Vec<_>| -> Result<Program, Error> {
        let mut builder = Program::builder(&[2]).unwrap();
        let op = FloatOp::FakeQuant { grids, axis: 1 };
        let y = builder.push("round", Instr::Float(op), &[builder.input()])?;
        builder.finish(y)
    };
    let program = build(vec![grid(7), grid(7)]).unwrap();
    assert_eq!(open(bytes_of(&program)).unwrap(), program);
    let error = build(vec![grid(7), grid(127)]).unwrap_err().to_string();
    assert!(error.contains("\"round\"") && error.contains("(-127, 127)"), "{error}");
}

#[test]
fn checkpoints_keep_every_type_and_text() {
    let mut container = Container::default();
    container
        .put("f", &Tensor::new(&[2, 2], [1.0f32, f32::NAN, -0.0, f32::INFINITY]).unwrap())
        .unwrap();
    container.put("step", &Tensor::scalar(i64::MIN)).unwrap();
    container.put("u", &Tensor::new(&[3], [0u8, 7, 255]).unwrap()).unwrap();
    container.put("none", &Tensor::<i32>::zeros(&[0, 3])).unwrap();
    let turned = Tensor::new(&[2, 3], [1i8, 2, 3, 4, 5, 6]).unwrap().transpose(0, 1).unwrap();
    container.put("turned", &turned).unwrap();
    container.metadata_mut().insert("a \"quoted\"\nkey\u{1}".into(), "ünï\\code 🦀".into());
    let path = std::env::temp_dir().join(format!("ottava-file-{}.ottava", std::process::id()));
    container.save(&path).unwrap();
    let read = Container::load(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(read, container);
    assert!(read.get::<f32>("f").unwrap().at(&[0, 1]).is_nan());
    assert_eq!(read.get::<i64>("step").unwrap().item().unwrap(), i64::MIN);
    assert_eq!(read.get::<i8>("turned").unwrap(), turned);
    assert!(read.get::<u8>("f").is_err() && read.get::<u8>("missing").is_err());
    assert!(container.put("__metadata__", &Tensor::scalar(0u8)).is_err());
    assert!(matches!(Container::load("/nowhere/at/all"), Err(Error::Io { .. })));
}

#[test]
fn a_program_is_saved_and_loaded_by_path() {
    let mut program = resnet(1, 4, 8);
    program.metadata_mut().insert("classes".into(), "[\"a\",\"b\"]".into());
    let path = std::env::temp_dir().join(format!("ottava-program-{}.ottava", std::process::id()));
    program.save(&path).unwrap();
    let loaded = Program::load(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(loaded, program);
    program.metadata_mut().insert("program".into(), String::new());
    assert!(program.to_container().is_err());
}
