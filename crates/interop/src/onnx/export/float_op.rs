//! The float operators of a program, as plain operators of ONNX.

use ottava_quant::{FloatOp, Window};
use ottava_tensor::Tensor;
use ottava_tensor::conv::ConvAttrs;

use super::super::proto::{Attribute, data_type};
use super::writer::{Writer, int, ints};

/// Appends the operator called `name` that reads `inputs`, the first of `rank` axes (the batch's
/// counted); the name of its result.
pub(super) fn write(
    writer: &mut Writer,
    name: &str,
    op: &FloatOp,
    rank: usize,
    mut inputs: Vec<String>,
) -> String {
    let (op, attributes) = match op {
        FloatOp::Conv { weight, bias, attrs } => {
            inputs.extend(parameters(writer, name, weight, bias.as_ref()));
            ("Conv", conv_attributes(*attrs, &weight.shape()[2..]))
        }
        FloatOp::Linear { weight, bias } => {
            inputs.extend(parameters(writer, name, weight, bias.as_ref()));
            ("Gemm", vec![int("transB", 1)])
        }
        FloatOp::MatMul(weight) => {
            inputs.extend(parameters(writer, name, weight, None));
            ("MatMul", vec![])
        }
        FloatOp::Affine { scale, shift } => {
            let scale = channels(writer, &format!("{name}.scale"), &scale.to_vec(), 1, rank);
            let shift = channels(writer, &format!("{name}.shift"), &shift.to_vec(), 1, rank);
            let x = inputs.swap_remove(0);
            inputs = vec![writer.node("Mul", &format!("{name}.scaled"), [x, scale], vec![]), shift];
            ("Add", vec![])
        }
        FloatOp::Add(constant) => {
            inputs.extend(constant.iter().map(|c| writer.tensor(&format!("{name}.constant"), c)));
            ("Add", vec![])
        }
        FloatOp::Mul(constant) => {
            inputs.extend(constant.iter().map(|c| writer.tensor(&format!("{name}.constant"), c)));
            ("Mul", vec![])
        }
        FloatOp::AvgPool { window: None, .. } => ("GlobalAveragePool", vec![]),
        FloatOp::AvgPool { window: Some(window), count_padding } => {
            ("AveragePool", average_attributes(window, *count_padding))
        }
        FloatOp::Softmax => ("Softmax", vec![int("axis", 1)]),
        FloatOp::LogSoftmax => ("LogSoftmax", vec![int("axis", 1)]),
        FloatOp::FakeQuant { grids, axis } => {
            // s·min(max(round(x·(1/s)), qmin − z), qmax − z)
            let of =
                |f: &dyn Fn(&ottava_quant::QParams) -> f32| Vec::from_iter(grids.iter().map(f));
            let steps = [
                ("Mul", "steps", Some(of(&|grid| grid.scale().recip()))),
                ("Round", "rounded", None),
                ("Max", "low", Some(of(&|grid| (grid.qmin() - grid.zero_point()) as f32))),
                ("Min", "high", Some(of(&|grid| (grid.qmax() - grid.zero_point()) as f32))),
            ];
            let mut x = inputs.swap_remove(0);
            for (op, what, values) in steps {
                let what = format!("{name}.{what}");
                let values =
                    values.map(|v| channels(writer, &format!("{what}_by"), &v, *axis, rank));
                x = writer.node(op, &what, std::iter::once(x).chain(values), vec![]);
            }
            let scales = of(&|grid| grid.scale());
            inputs = vec![x, channels(writer, &format!("{name}.scale"), &scales, *axis, rank)];
            ("Mul", vec![])
        }
        FloatOp::DynamicLinear { codes, scales, bias } => {
            let x = inputs.swap_remove(0);
            let [q, x_scale, x_zero] =
                writer.nodes("DynamicQuantizeLinear", &format!("{name}.quantize"), [x]);
            let [o, k] = [codes.shape()[0], codes.shape()[1]];
            let codes = codes.transpose(0, 1).map_or_else(|_| vec![], |codes| codes.to_vec());
            let codes = writer.i8s(&format!("{name}.weight"), &[k, o], &codes);
            let sums = [q, codes, x_zero];
            let sums = writer.node("MatMulInteger", &format!("{name}.sums"), sums, vec![]);
            let to = vec![int("to", data_type::FLOAT.into())];
            let sums = writer.node("Cast", &format!("{name}.float"), [sums], to);
            let scale = writer.floats(&format!("{name}.weight_scale"), &[o], scales);
            let scale = writer.node("Mul", &format!("{name}.scales"), [x_scale, scale], vec![]);
            let scaled = writer.node("Mul", &format!("{name}.scaled"), [sums, scale], vec![]);
            inputs = vec![scaled, writer.floats(&format!("{name}.bias"), &[o], bias)];
            ("Add", vec![])
        }
    };
    writer.node(op, name, inputs, attributes)
}

fn parameters(
    writer: &mut Writer,
    name: &str,
    weight: &Tensor<f32>,
    bias: Option<&Tensor<f32>>,
) -> Vec<String> {
    let weight = writer.tensor(&format!("{name}.weight"), weight);
    let bias = bias.map(|bias| writer.tensor(&format!("{name}.bias"), bias));
    std::iter::once(weight).chain(bias).collect()
}

/// Numbers along an axis of values of `rank` axes; a single one is for all.
fn channels(writer: &mut Writer, name: &str, values: &[f32], axis: usize, rank: usize) -> String {
    let mut shape = vec![1; if values.len() == 1 { 0 } else { rank }];
    if let Some(size) = shape.get_mut(axis) {
        *size = values.len();
    }
    writer.floats(name, &shape, values)
}

/// The attributes of a convolution whose windows have the size `kernel`.
pub(super) fn conv_attributes(attrs: ConvAttrs, kernel: &[usize]) -> Vec<Attribute> {
    vec![
        ints("kernel_shape", kernel),
        ints("strides", &attrs.stride),
        ints("pads", &attrs.padding),
        ints("dilations", &attrs.dilation),
        int("group", attrs.groups as i64),
    ]
}

/// The attributes of pooling.
pub(super) fn window_attributes(window: &Window) -> Vec<Attribute> {
    vec![
        ints("kernel_shape", &window.kernel),
        ints("strides", &window.stride),
        ints("pads", &window.padding),
    ]
}

/// The attributes of an average over windows.
pub(super) fn average_attributes(window: &Window, count_padding: bool) -> Vec<Attribute> {
    let mut attributes = window_attributes(window);
    attributes.push(int("count_include_pad", count_padding.into()));
    attributes
}
