use ottava_autograd::Mode;
use ottava_quant::{Engine, Workspace};
use prost::Message as _;

use super::proto::{Graph, Model, Node, OperatorSet, TensorProto, ValueInfo, data_type};
use super::*;

/// A file of nodes (`output = Operator(inputs)`) from `x`, of the shape given, to `y`.
fn file(shape: &[i64], nodes: &[&str], initializer: Vec<TensorProto>) -> Vec<u8> {
    let words = |text: &str| -> Vec<String> {
        text.split(',').map(|word| word.trim().to_owned()).collect()
    };
    let node = |text: &&str| {
        let (output, call) = text.split_once(" = ").unwrap();
        let (operator, inputs) = call.trim_end_matches(')').split_once('(').unwrap();
        Node {
            input: words(inputs),
            output: words(output),
            name: output.into(),
            op_type: operator.into(),
            ..Default::default()
        }
    };
    let dim = shape.iter().map(|&size| proto::Dimension { value: Some(proto::Size::Known(size)) });
    let shape = proto::Shape { dim: dim.collect() };
    let value = |name: &str| ValueInfo {
        name: name.into(),
        r#type: Some(proto::Type {
            tensor_type: Some(proto::TensorType {
                elem_type: data_type::FLOAT,
                shape: Some(shape.clone()),
            }),
        }),
    };
    let graph = Graph {
        node: nodes.iter().map(node).collect(),
        name: "test".into(),
        initializer,
        input: vec![value("x")],
        output: vec![value("y")],
    };
    let opset_import = vec![OperatorSet { domain: String::new(), version: 17 }];
    Model { ir_version: 8, graph: Some(graph), opset_import, ..Default::default() }.encode_to_vec()
}

fn floats(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    TensorProto {
        dims: dims.to_vec(),
        data_type: data_type::FLOAT,
        float_data: values.to_vec(),
        name: name.into(),
        ..Default::default()
    }
}

/// The zero-point `z` of unsigned codes.
fn zero() -> TensorProto {
    TensorProto {
        data_type: data_type::UINT8,
        int32_data: vec![0],
        name: "z".into(),
        ..Default::default()
    }
}

#[test]
fn a_name_has_one_meaning() {
    let constants = || {
        let codes = TensorProto {
            dims: vec![2, 2],
            data_type: data_type::INT8,
            int32_data: vec![1; 4],
            name: "codes".into(),
            ..Default::default()
        };
        vec![zero(), codes, floats("s", &[], &[0.5]), floats("f", &[2], &[1.0, 2.0])]
    };
    let quantized = ["q = QuantizeLinear(x, s, z)", "d = DequantizeLinear(q, s, z)"];
    // A name of a node's value, of a dequantized constant, of a constant of the graph, and the input's.
    for (again, name) in [
        ("d = DequantizeLinear(q, s, z)", "d"),
        ("w = DequantizeLinear(codes, s)", "w"),
        ("w = QuantizeLinear(f, s, z)", "w"),
        ("codes = DequantizeLinear(q, s, z)", "codes"),
        ("x = DequantizeLinear(codes, s)", "x"),
    ] {
        let nodes = [&["w = DequantizeLinear(codes, s)"], &quantized[..], &[again]].concat();
        let bytes = file(&[1, 2], &nodes, constants());
        let error = onnx_program_from_bytes("t", &bytes).unwrap_err().to_string();
        assert!(error.ends_with(&format!("{name:?} is defined twice")), "{again}: {error}");
    }
    for again in ["r = Relu(x)", "r = Identity(f)", "f = Relu(x)", "x = Relu(x)"] {
        let bytes = file(&[1, 2], &["r = Relu(x)", again], constants());
        let error = onnx_from_bytes("t", &bytes).unwrap_err().to_string();
        assert!(error.ends_with("is defined twice"), "{again}: {error}");
    }
    let constants = [constants(), constants()].concat();
    let error = onnx_from_bytes("t", &file(&[1, 2], &["y = Relu(x)"], constants)).unwrap_err();
    assert!(error.to_string().contains("\"z\" is defined twice"), "{error}");
}

/// So many that looking through all constants for each input would take a minute.
#[test]
fn inputs_that_are_constants_are_told_apart_at_once() {
    let names = (0..150_000).map(|i| format!("constant {i}"));
    let constants: Vec<TensorProto> = names.map(|name| floats(&name, &[], &[1.0])).collect();
    let mut model = Model::decode(&*file(&[1, 2], &["y = Relu(x)"], constants)).unwrap();
    let graph = model.graph.as_mut().unwrap();
    let value = |tensor: &TensorProto| ValueInfo { name: tensor.name.clone(), r#type: None };
    let inputs: Vec<ValueInfo> = graph.initializer.iter().map(value).collect();
    graph.input.extend(inputs);
    let started = std::time::Instant::now();
    onnx_from_bytes("t", &model.encode_to_vec()).unwrap();
    assert!(started.elapsed().as_secs() < 20);
}

/// `Identity` gives a product a second name, under which it is read without the bias.
#[test]
fn a_bias_reaches_nobody_else() {
    let constants = || {
        vec![
            floats("w", &[2, 2], &[1.0, 0.0, 0.0, 1.0]),
            floats("b", &[2], &[10.0, 20.0]),
            floats("column", &[2, 1], &[1.0, 2.0]),
        ]
    };
    let run = |nodes: &[&str]| {
        let network = onnx_from_bytes("t", &file(&[1, 2], nodes, constants())).unwrap().graph;
        let x = Tensor::new(&[1, 2], [1.0, -2.0]).unwrap();
        let y = ottava_nn::predict(&network, Mode::EVAL, x).unwrap();
        (y.to_vec(), network.nodes().len())
    };
    let (fused, nodes) = run(&["m = MatMul(x, w)", "y = Add(m, b)"]);
    assert_eq!((fused, nodes), (vec![11.0, 18.0], 4), "input, weight, bias, product");
    let (other, _) = run(&[
        "m = MatMul(x, w)",
        "i = Identity(m)",
        "a = Add(i, b)",
        "r = Relu(m)",
        "y = Add(a, r)",
    ]);
    assert_eq!(other, [12.0, 18.0]);
    // Of the right length, but broadcast along the batch.
    let nodes = ["m = MatMul(x, w)", "y = Add(m, column)"];
    let error = onnx_from_bytes("t", &file(&[1, 2], &nodes, constants())).unwrap_err();
    assert!(error.to_string().contains("\"column\" of shape [2, 1]"), "{error}");
}

/// A constant that layers share becomes each layer's own, up to a limit.
#[test]
fn weights_are_shared_within_reason() {
    let codes = TensorProto {
        dims: vec![512, 512],
        data_type: data_type::INT8,
        raw_data: vec![1; 512 * 512],
        name: "codes".into(),
        ..Default::default()
    };
    let open = |layers: usize| {
        let mut nodes = vec![
            "w = DequantizeLinear(codes, s)".to_owned(),
            "q0 = QuantizeLinear(x, s, z)".to_owned(),
            "d0 = DequantizeLinear(q0, s, z)".to_owned(),
        ];
        for i in 1..=layers {
            let last = if i == layers { "y".to_owned() } else { format!("d{i}") };
            nodes.push(format!("m{i} = MatMul(d{}, w)", i - 1));
            nodes.push(format!("q{i} = QuantizeLinear(m{i}, s, z)"));
            nodes.push(format!("{last} = DequantizeLinear(q{i}, s, z)"));
        }
        let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
        let constants = vec![zero(), codes.clone(), floats("s", &[], &[0.5])];
        onnx_program_from_bytes("t", &file(&[1, 512], &nodes, constants))
    };
    assert_eq!(open(64).unwrap().nodes().len(), 65);
    let error = open(65).unwrap_err().to_string();
    assert!(error.contains("64 times"), "{error}");

    // What never comes to be in the program takes memory as well: layers that nobody reads, and
    // constants that the file quantizes.
    let unread = |number: usize, node: &dyn Fn(usize) -> String| {
        let mut nodes = vec![
            "w = DequantizeLinear(codes, s)".to_owned(),
            "q = QuantizeLinear(x, s, z)".to_owned(),
            "y = DequantizeLinear(q, s, z)".to_owned(),
        ];
        nodes.extend((0..number).map(node));
        let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
        let values = floats("f", &[512, 512], &[1.0; 512 * 512]);
        let constants = vec![zero(), codes.clone(), floats("s", &[], &[0.5]), values];
        onnx_program_from_bytes("t", &file(&[1, 512], &nodes, constants))
    };
    for node in
        [&|i| format!("m{i} = MatMul(y, w)"), &|i| format!("c{i} = QuantizeLinear(f, s, z)")]
            as [&dyn Fn(usize) -> String; 2]
    {
        assert_eq!(unread(64, node).unwrap().nodes().len(), 1);
        let error = unread(129, node).unwrap_err().to_string();
        assert!(error.contains("64 times"), "{error}");
    }
}

/// Under another name, a weight becomes another leaf.
#[test]
fn float_weights_are_shared_within_reason_too() {
    let open = |names: usize, layers: usize| {
        let mut nodes = vec!["m0 = Relu(x)".to_owned()];
        nodes.extend((0..names).map(|i| format!("w{i} = Identity(w)")));
        for i in 1..=layers {
            let last = if i == layers { "y".to_owned() } else { format!("m{i}") };
            nodes.push(format!("{last} = MatMul(m{}, w{})", i - 1, i % names));
        }
        let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
        let weight = floats("w", &[512, 512], &[0.5; 512 * 512]);
        onnx_from_bytes("t", &file(&[1, 512], &nodes, vec![weight]))
    };
    assert_eq!(open(2, 200).unwrap().graph.leaves().len(), 2);
    assert_eq!(open(64, 64).unwrap().graph.leaves().len(), 64);
    let error = open(65, 65).unwrap_err().to_string();
    assert!(error.contains("64 times"), "{error}");
}

#[test]
fn what_is_in_training_is_refused() {
    let constants = || {
        let mode = |name: &str, mode| TensorProto {
            data_type: data_type::BOOL,
            int32_data: vec![mode],
            name: name.into(),
            ..Default::default()
        };
        vec![
            zero(),
            floats("s", &[], &[0.5]),
            floats("c", &[2], &[1.0, 1.0]),
            mode("on", 1),
            mode("off", 0),
        ]
    };
    let attribute = |name: &str, i| proto::Attribute {
        name: name.into(),
        i,
        kind: proto::attribute_kind::INT,
        ..Default::default()
    };
    let open = |node: &str, attributes: &[(&str, i64)]| {
        let bytes = file(&[1, 2, 1, 1], &[node], constants());
        let mut model = Model::decode(&*bytes).unwrap();
        let node = &mut model.graph.as_mut().unwrap().node[0];
        node.attribute = attributes.iter().map(|(name, i)| attribute(name, *i)).collect();
        onnx_from_bytes("t", &model.encode_to_vec()).map_err(|error| error.to_string())
    };
    let norm = "y = BatchNormalization(x, c, c, c, c)";
    assert!(open(norm, &[("training_mode", 0), ("spatial", 1)]).is_ok());
    assert!(open(norm, &[("training_mode", 1)]).unwrap_err().contains("training_mode"));
    assert!(open(norm, &[("spatial", 0)]).unwrap_err().contains("spatial"));
    let old = "y, mean, var = BatchNormalization(x, c, c, c, c)";
    assert!(open(old, &[]).unwrap_err().contains("training_mode"));
    assert!(open("y = Dropout(x)", &[]).is_ok());
    for (mode, trains) in [("off", false), ("on", true), ("x", true)] {
        let dropout = format!("y = Dropout(x, , {mode})");
        assert_eq!(open(&dropout, &[]).is_err(), trains, "{mode}");
        let dropout = format!("e = Dropout(d, , {mode})");
        let nodes = [
            "q = QuantizeLinear(x, s, z)",
            "d = DequantizeLinear(q, s, z)",
            &dropout,
            "r = QuantizeLinear(e, s, z)",
            "y = DequantizeLinear(r, s, z)",
        ];
        let bytes = file(&[1, 2, 1, 1], &nodes, constants());
        assert_eq!(onnx_program_from_bytes("t", &bytes).is_err(), trains, "{mode}");
    }
}

/// With as many images as the file says; with any number where it leaves that open.
#[test]
fn a_reshape_keeps_the_batch() {
    let open = |batch: i64, target: &[i64]| {
        let target = TensorProto {
            dims: vec![target.len() as i64],
            data_type: data_type::INT64,
            int64_data: target.to_vec(),
            name: "t".into(),
            ..Default::default()
        };
        let float = file(&[batch, 4, 2, 2], &["y = Reshape(x, t)"], vec![target.clone()]);
        let nodes =
            ["q = QuantizeLinear(x, s, z)", "r = Reshape(q, t)", "y = DequantizeLinear(r, s, z)"];
        let constants = vec![zero(), floats("s", &[], &[0.5]), target];
        let integer = file(&[batch, 4, 2, 2], &nodes, constants);
        let float = onnx_from_bytes("t", &float).map(drop);
        let integer = onnx_program_from_bytes("t", &integer).map(drop);
        for error in [&float, &integer].into_iter().filter_map(|read| read.as_ref().err()) {
            assert!(error.to_string().contains("the batch must stay"), "{error}");
        }
        assert_eq!(float.is_ok(), integer.is_ok());
        float.is_ok()
    };
    for batch in [1, 2, -1] {
        assert!(open(batch, &[0, -1]) && open(batch, &[-1, 16]) && open(batch, &[0, 8, 2]));
    }
    assert!(open(1, &[1, -1]) && open(2, &[2, -1]) && open(2, &[2, 16]));
    // Four rows of one image are no batch of four.
    assert!(!open(1, &[4, -1]) && !open(2, &[1, -1]) && !open(2, &[1, 16]));
    // A file for one image, whoever says so; and one that makes one of all.
    assert!(open(-1, &[1, 16]) && !open(-1, &[1, -1]));
}

/// A column would be another sum for each image of the batch, whatever its length.
#[test]
fn a_bias_is_a_row_or_one_number() {
    let codes = TensorProto {
        dims: vec![2, 2],
        data_type: data_type::INT8,
        int32_data: vec![2, 0, 0, 2],
        name: "codes".into(),
        ..Default::default()
    };
    fn float(bytes: &[u8]) -> Result<Vec<f32>> {
        let x = Tensor::new(&[1, 2], [1.0, 3.0]).unwrap();
        let network = onnx_from_bytes("t", bytes)?.graph;
        Ok(ottava_nn::predict(&network, Mode::EVAL, x).unwrap().to_vec())
    }
    fn integer(bytes: &[u8]) -> Result<Vec<f32>> {
        let x = Tensor::new(&[1, 2], [1.0, 3.0]).unwrap();
        let program = onnx_program_from_bytes("t", bytes)?;
        let engine = Engine::new(&program).unwrap();
        Ok(engine.run(&x, &mut Workspace::default()).unwrap().to_vec())
    }
    let quantized = |layer: &[&'static str]| {
        let before = [
            "v = DequantizeLinear(codes, s)",
            "q = QuantizeLinear(x, s, z)",
            "d = DequantizeLinear(q, s, z)",
        ];
        let behind = ["r = QuantizeLinear(m, s, z)", "y = DequantizeLinear(r, s, z)"];
        [&before, layer, &behind].concat()
    };
    let layers = [
        (vec!["y = Gemm(x, w, c)"], float as fn(&[u8]) -> Result<Vec<f32>>),
        (vec!["m = MatMul(x, w)", "y = Add(m, c)"], float),
        (quantized(&["m = Gemm(d, v, c)"]), integer),
        (quantized(&["p = MatMul(d, v)", "m = Add(p, c)"]), integer),
    ];
    for (nodes, run) in layers {
        let answer = |dims: &[i64], values: &[f32]| {
            let identity = floats("w", &[2, 2], &[1.0, 0.0, 0.0, 1.0]);
            let scale = floats("s", &[], &[0.5]);
            let constants = vec![codes.clone(), zero(), scale, identity, floats("c", dims, values)];
            run(&file(&[1, 2], &nodes, constants)).map_err(|error| error.to_string())
        };
        for dims in [&[2][..], &[1, 2]] {
            assert_eq!(answer(dims, &[10.0, 20.0]), Ok(vec![11.0, 23.0]), "{nodes:?} {dims:?}");
        }
        for dims in [&[][..], &[1], &[1, 1]] {
            assert_eq!(answer(dims, &[10.0]), Ok(vec![11.0, 13.0]), "{nodes:?} {dims:?}");
        }
        for dims in [&[2, 1][..], &[1, 1, 2]] {
            let error = answer(dims, &[10.0, 20.0]).unwrap_err();
            assert!(error.contains("\"c\" of shape ["), "{nodes:?}: {error}");
        }
    }
}

#[test]
fn a_bias_keeps_its_sign_where_another_layer_subtracts_it() {
    let identity = floats("w", &[2, 2], &[1.0, 0.0, 0.0, 1.0]);
    let constants = vec![identity, floats("c", &[2], &[10.0, 20.0])];
    let nodes = ["m1 = MatMul(x, w)", "a = Add(m1, c)", "m2 = MatMul(a, w)", "y = Sub(m2, c)"];
    let network = onnx_from_bytes("t", &file(&[1, 2], &nodes, constants)).unwrap().graph;
    let x = Tensor::new(&[1, 2], [1.0, -2.0]).unwrap();
    assert_eq!(ottava_nn::predict(&network, Mode::EVAL, x).unwrap().to_vec(), [1.0, -2.0]);
}

/// A zero-point that is left out is zero, in the type that the codes have.
#[test]
fn codes_without_a_zero_point_keep_their_type() {
    let signed = || TensorProto { data_type: data_type::INT8, ..zero() };
    let average = "a = QLinearAveragePool(q, s, , s)";
    for (nodes, constant) in [
        (vec!["q = QuantizeLinear(x, s, z)", "y = DequantizeLinear(q, s)"], signed()),
        (vec!["q = QuantizeLinear(x, s)", "y = DequantizeLinear(q, s)"], zero()),
        (vec!["q = QuantizeLinear(x, s, z)", average, "y = DequantizeLinear(a, s, z)"], signed()),
    ] {
        let bytes = file(&[1, 1, 1, 2], &nodes, vec![constant.clone(), floats("s", &[], &[0.5])]);
        let mut model = Model::decode(&*bytes).unwrap();
        for node in &mut model.graph.as_mut().unwrap().node {
            if node.op_type.starts_with("QLinear") {
                node.domain = "com.microsoft".into();
                node.attribute = vec![proto::Attribute {
                    name: "kernel_shape".into(),
                    ints: vec![1, 1],
                    kind: proto::attribute_kind::INTS,
                    ..Default::default()
                }];
            }
        }
        let program = onnx_program_from_bytes("t", &model.encode_to_vec()).unwrap();
        let x = Tensor::new(&[1, 1, 1, 2], [-100.0, 7.0]).unwrap();
        let engine = Engine::new(&program).unwrap();
        let y = engine.run(&x, &mut Workspace::default()).unwrap().to_vec();
        let least = if constant.data_type == data_type::INT8 { -64.0 } else { 0.0 };
        assert_eq!(y, [least, 7.0], "{nodes:?}");
    }
}

#[test]
fn weights_that_are_no_numbers_are_refused() {
    for bad in [f32::NAN, f32::INFINITY] {
        let constants =
            vec![zero(), floats("s", &[], &[0.5]), floats("f", &[2, 2], &[1.0, bad, 0.0, 2.0])];
        let nodes = ["w = QuantizeLinear(f, s, z)", "y = Relu(x)"];
        let bytes = file(&[1, 2], &nodes, constants);
        let error = onnx_program_from_bytes("t", &bytes).unwrap_err().to_string();
        assert!(error.contains(&format!("\"f\" holds {bad}")), "{error}");
    }
}

/// What `nodes`, quantized to a grid of 0.236 and to one that ends with 6, make of 10, 2.36 and −4; the
/// result in steps of the second grid.
fn clipped(nodes: &[&str]) -> Result<Vec<f32>> {
    let constants = vec![
        zero(),
        floats("s1", &[], &[0.236]),
        floats("s2", &[], &[6.0 / 255.0]),
        floats("low", &[], &[0.0]),
        floats("high", &[], &[6.0]),
    ];
    let program = onnx_program_from_bytes("t", &file(&[1, 1, 1, 3], nodes, constants))?;
    let engine = Engine::new(&program).unwrap();
    let x = Tensor::new(&[1, 1, 1, 3], [10.0, 2.36, -4.0]).unwrap();
    let y = engine.run(&x, &mut Workspace::default()).unwrap();
    Ok(y.iter().map(|y| (y / (6.0 / 255.0) * 100.0).round() / 100.0).collect())
}

const FIRST: [&str; 2] = ["q1 = QuantizeLinear(x, s1, z)", "d1 = DequantizeLinear(q1, s1, z)"];
const CLIP: &str = "c = Clip(d1, low, high)";
const SECOND: [&str; 2] = ["q2 = QuantizeLinear(c, s2, z)", "y = DequantizeLinear(q2, s2, z)"];

/// 10 is 42 on a grid of 0.236, 9.9: beyond the 6 that the next grid ends with, which is no number of the first.
#[test]
fn a_bound_is_rounded_to_the_grid_behind_it() {
    let on = |nodes: &[&str]| clipped(&[&FIRST[..], &[CLIP], nodes].concat()).unwrap();
    assert_eq!(on(&SECOND), [255.0, 100.0, 0.0]);
    // Whoever reads the clipped values besides.
    let again = ["q3 = QuantizeLinear(c, s2, z)", "d3 = DequantizeLinear(q3, s2, z)"];
    assert_eq!(on(&[&again[..], &SECOND].concat()), [255.0, 100.0, 0.0]);
    let other = ["q3 = QuantizeLinear(c, s1, z)", "d3 = DequantizeLinear(q3, s1, z)"];
    assert_eq!(on(&[&other[..], &SECOND].concat()), [255.0, 100.0, 0.0]);
    // A second clip, and what only moves elements.
    let moved = ["q2 = QuantizeLinear(e, s2, z)", SECOND[1]];
    assert_eq!(on(&[&["e = Clip(c, , high)"][..], &moved].concat()), [255.0, 100.0, 0.0]);
    assert_eq!(on(&[&["e = Identity(c)"][..], &moved].concat()), [255.0, 100.0, 0.0]);
    // 6 is between 25 and 26 steps of 0.236: its own grid rounds it to 25.
    let first = ["q2 = QuantizeLinear(c, s1, z)", "y = DequantizeLinear(q2, s1, z)"];
    assert_eq!(on(&first), [250.75, 100.3, 0.0]);
}

/// A bound in front of a grid is rounded to that grid, not to the one behind.
#[test]
fn a_bound_is_rounded_to_no_later_grid() {
    let sum = ["t = Add(d1, d1)", "c = Clip(t, low, high)", "q = QuantizeLinear(c, s1, z)"];
    let behind = ["d = DequantizeLinear(q, s1, z)", "q2 = QuantizeLinear(d, s2, z)", SECOND[1]];
    // 25 steps of 0.236, 5.9, are 251 of 6/255.
    let y = clipped(&[&FIRST[..], &sum, &behind].concat()).unwrap();
    assert_eq!(y, [251.0, 201.0, 0.0]);
}

#[test]
fn clipped_values_that_no_code_stands_for_are_refused() {
    let nodes = [&FIRST[..], &[CLIP, "c2 = GlobalAveragePool(c)"]].concat();
    let behind = ["q2 = QuantizeLinear(c2, s2, z)", SECOND[1]];
    let error = clipped(&[&nodes[..], &behind].concat()).unwrap_err().to_string();
    assert!(error.contains("between two codes") && error.contains("QuantizeLinear"), "{error}");
    // Codes have bounds among them; another value is none.
    let error =
        clipped(&[&FIRST[..1], &["c = Clip(q1, , q1)", "y = DequantizeLinear(c, s1, z)"]].concat());
    let error = error.unwrap_err().to_string();
    assert!(error.contains("no constants"), "{error}");
}

/// An exporter has merged what was equal, before anything was trained.
#[test]
fn each_batch_norm_has_its_own_leaves() {
    let vector = |name: &str, value: f32| floats(name, &[2], &[value; 2]);
    let constants = vec![vector("one", 1.0), vector("zero", 0.0)];
    let nodes = [
        "a = BatchNormalization(x, one, zero, zero, one)",
        "y = BatchNormalization(a, one, zero, zero, one)",
    ];
    let network = onnx_from_bytes("t", &file(&[1, 2, 3, 3], &nodes, constants)).unwrap();
    assert_eq!(network.graph.leaves().len(), 8);
}

/// PyTorch's `torch.clamp` and ONNX: the upper bound.
#[test]
fn bounds_the_wrong_way_round_are_the_upper_one() {
    let constants = vec![floats("low", &[], &[6.0]), floats("high", &[], &[0.0])];
    let network =
        onnx_from_bytes("t", &file(&[1, 3], &["y = Clip(x, low, high)"], constants)).unwrap();
    let x = Tensor::new(&[1, 3], [-1.0, 1.0, 9.0]).unwrap();
    let y = ottava_nn::predict(&network.graph, Mode::EVAL, x).unwrap();
    assert_eq!(y.to_vec(), [0.0; 3]);
}

/// Small files that would take much memory, or more than there is.
#[test]
fn shapes_are_within_reason() {
    let ints = |name: &str, values: &[i64]| TensorProto {
        dims: vec![values.len() as i64],
        data_type: data_type::INT64,
        int64_data: values.to_vec(),
        name: name.into(),
        ..Default::default()
    };
    let refused = |nodes: &[&str], constants: Vec<TensorProto>, expected: &str| {
        let bytes = file(&[1, 4], nodes, constants);
        let error = onnx_from_bytes("t", &bytes).map(|_| ()).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    };
    let many = [&[0, 4][..], &[1; 1000]].concat();
    refused(&["y = Reshape(x, shape)"], vec![ints("shape", &many)], "1002 axes");
    let twice = vec![ints("starts", &[0, 0]), ints("ends", &[3, 2]), ints("axes", &[1, -1])];
    refused(&["y = Slice(x, starts, ends, axes)"], twice, "axis 1 twice");
    let twice = vec![ints("pads", &[0, 0, 1, 1]), ints("axes", &[1, 1])];
    refused(&["y = Pad(x, pads, , axes)"], twice, "axis 1 twice");

    // The results of a convolution are few, but what it reads with its border is not.
    let bytes = file(&[1, 1, 1, 1], &["y = Conv(x, w)"], vec![floats("w", &[1, 1, 1, 1], &[1.0])]);
    let mut model = Model::decode(&*bytes).unwrap();
    let list = |name: &str, values: &[i64]| proto::Attribute {
        name: name.into(),
        ints: values.to_vec(),
        kind: proto::attribute_kind::INTS,
        ..Default::default()
    };
    let node = &mut model.graph.as_mut().unwrap().node[0];
    node.attribute = vec![list("pads", &[8_388_608; 4]), list("strides", &[16_777_215, 2_097_152])];
    let error = onnx_from_bytes("t", &model.encode_to_vec()).err().unwrap().to_string();
    assert!(error.contains("[1, 16777217, 16777217]"), "{error}");
    // A list where a number was expected.
    let node = &mut model.graph.as_mut().unwrap().node[0];
    node.attribute = vec![list("group", &[1])];
    let error = onnx_from_bytes("t", &model.encode_to_vec()).err().unwrap().to_string();
    assert!(error.contains("group is an attribute of type 7"), "{error}");
}

#[test]
fn nodes_are_called_as_the_module_that_owns_them() {
    let node = |name: &str| proto::Node {
        name: name.into(),
        op_type: "Conv".into(),
        ..Default::default()
    };
    assert_eq!(owner(&node("x"), Some("layer1.0.conv1.weight")), "layer1.0.conv1");
    let scoped = node("/layer1/layer1.0/conv1/Conv");
    assert_eq!(owner(&scoped, Some("onnx::Conv_193")), "layer1.0.conv1");
    assert_eq!(owner(&node("/Flatten"), None), "flatten");
    assert_eq!(owner(&node(""), None), "conv");
}
