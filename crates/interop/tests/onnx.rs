//! Networks that `tools/make_onnx_fixtures.py` wrote, against ONNX Runtime's answers; and damaged ones.
#![cfg(all(feature = "onnx", feature = "safetensors"))]

use std::path::{Path, PathBuf};

use ottava_autograd::{Kind, Mode, NodeKind, Tape};
use ottava_interop::{
    OnnxNetwork, OnnxOptions, graph_to_onnx, onnx_from_bytes, read_onnx, read_safetensors,
};
use proptest::prelude::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/onnx").join(name)
}

/// The network, if its answer equals ONNX Runtime's to `1e-5` of the largest value.
fn agrees(name: &str) -> OnnxNetwork {
    let network = read_onnx(&fixture(&format!("{name}.onnx"))).unwrap();
    let sample = read_safetensors(&fixture(&format!("{name}.safetensors"))).unwrap();
    let tape = Tape::no_grad(Mode::EVAL);
    let y = network.graph.run(tape.input(sample.get("x").unwrap().clone())).unwrap().tensor();
    let expected = sample.get("y").unwrap();
    assert_eq!(y.shape(), expected.shape(), "{name}");
    let most = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
    for (y, expected) in y.iter().zip(expected.iter()) {
        assert!((y - expected).abs() <= 1e-5 * most, "{name}: {y} instead of {expected}");
    }
    network
}

#[test]
fn residual_networks_compute_what_onnx_runtime_computes() {
    let network = agrees("residual");
    assert_eq!((network.opset, &*network.metadata["classes"]), (17, "a,b,c,d,e"));
    let leaves = network.graph.leaves();
    let kind = |name: &str| leaves.iter().find(|(n, _)| n == name).map(|(_, leaf)| leaf.kind());
    assert_eq!(kind("stem.weight"), Some(Kind::Param));
    assert_eq!(kind("bn.running_var"), Some(Kind::Buffer));
    assert_eq!(kind("fc.bias"), Some(Kind::Param));
}

#[test]
fn pools_constants_and_products_do_too() {
    let network = agrees("pools");
    // The constant added to the matrix product became its bias.
    let adds = |node: &&ottava_autograd::GraphNode| matches!(&node.kind, NodeKind::Op(op, _) if op.name() == "add");
    assert_eq!(network.graph.nodes().iter().filter(adds).count(), 1);
}

#[test]
fn files_of_old_exporters_do_too() {
    let network = agrees("old");
    assert!(network.graph.leaves().iter().any(|(name, _)| name == "layer1.0.conv.weight"));
}

#[test]
fn what_is_no_network_is_refused_with_a_reason() {
    let refusal = |bytes: &[u8]| onnx_from_bytes("t", bytes).unwrap_err().to_string();
    assert!(refusal(b"").contains("not an ONNX file"));
    assert!(refusal(b"\x89PNG\r\n\x1a\n").contains("t: "));
    let whole = std::fs::read(fixture("old.onnx")).unwrap();
    let replaced = |from: &[u8], to: &[u8]| {
        assert_eq!(from.len(), to.len());
        let mut bytes = whole.clone();
        let places: Vec<usize> =
            (0..bytes.len() - from.len()).filter(|&i| bytes[i..].starts_with(from)).collect();
        assert!(!places.is_empty());
        places.into_iter().for_each(|i| bytes[i..i + to.len()].copy_from_slice(to));
        refusal(&bytes)
    };
    assert!(replaced(b"Softmax", b"Softmin").contains("(Softmin): this operator is not supported"));
    // A node that reads what comes after it: v2 := Clip(v3), v3 := Slice(v2).
    let mut cyclic = whole.clone();
    let at = cyclic.windows(4).position(|w| w == b"\x0a\x02v1").unwrap();
    cyclic[at + 3] = b'3';
    assert!(refusal(&cyclic).contains("unsorted or cyclic"));
    assert!(refusal(&whole[..whole.len() / 2]).contains("damaged"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn damage_is_never_a_panic(
        which in 0usize..3,
        cut in prop::option::of(0usize..4000),
        hits in prop::collection::vec((any::<usize>(), any::<u8>()), 0..6),
    ) {
        let name = ["residual.onnx", "pools.onnx", "old.onnx"][which];
        let mut bytes = std::fs::read(fixture(name)).unwrap();
        if let Some(cut) = cut {
            bytes.truncate(cut);
        }
        for (at, value) in hits {
            let len = bytes.len().max(1);
            if let Some(byte) = bytes.get_mut(at % len) {
                *byte = value;
            }
        }
        let _ = onnx_from_bytes("t", &bytes);
    }
}

#[test]
fn an_exported_graph_computes_the_same_bits() {
    for name in ["residual", "pools", "old"] {
        let network = read_onnx(&fixture(&format!("{name}.onnx"))).unwrap();
        let bytes =
            graph_to_onnx(&network.graph, &network.metadata, &OnnxOptions::default()).unwrap();
        let again = onnx_from_bytes(name, &bytes).unwrap();
        assert_eq!(again.metadata, network.metadata);
        let sample = read_safetensors(&fixture(&format!("{name}.safetensors"))).unwrap();
        let run = |network: &OnnxNetwork| {
            let tape = Tape::no_grad(Mode::EVAL);
            network
                .graph
                .run(tape.input(sample.get("x").unwrap().clone()))
                .unwrap()
                .tensor()
                .to_vec()
        };
        assert_eq!(run(&again), run(&network), "{name}");
    }
}
