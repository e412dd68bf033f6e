//! What PyTorch and ONNX Runtime answer, case by case. `OTTAVA_GOLDEN_DIR` names another directory of
//! cases than `tests/golden`; `tools/make_golden.py` writes one.

mod case;
mod float;
mod folding;
mod integer;
mod network;
mod rounding;
mod training;

use std::collections::BTreeMap;

use case::Case;

/// What checks a case.
type Check = fn(&Case);

/// The families, and what checks each. All of them are among the committed cases.
const FAMILIES: [(&str, Check); 26] = [
    ("conv2d", float::conv2d),
    ("linear", float::linear),
    ("matmul", float::matmul),
    ("relu", float::relu),
    ("relu6", float::relu6),
    ("add", float::add),
    ("mul", float::mul),
    ("max_pool2d", float::max_pool2d),
    ("avg_pool2d", float::avg_pool2d),
    ("global_avg_pool2d", float::global_avg_pool2d),
    ("log_softmax", float::log_softmax),
    ("cross_entropy", training::cross_entropy),
    ("batch_norm2d", training::batch_norm2d),
    ("optimizer", training::optimizer),
    ("fake_quant_per_tensor", rounding::fake_quant_per_tensor),
    ("fake_quant_per_channel", rounding::fake_quant_per_channel),
    ("fake_quant_learnable", rounding::fake_quant_learnable),
    ("observer/Histogram", rounding::observer),
    ("observer/MinMax", rounding::observer),
    ("observer/MovingAverageMinMax", rounding::observer),
    ("observer/PerChannelMinMax", rounding::observer),
    ("observer/MovingAveragePerChannelMinMax", rounding::observer),
    ("conv_bn_relu_qat", folding::conv_bn_relu_qat),
    ("qlinear_conv", integer::qlinear_conv),
    ("qlinear_add", integer::qlinear_add),
    ("resnet18", network::resnet18),
];

#[test]
fn golden_cases() {
    let mut families: BTreeMap<String, Vec<Case>> = BTreeMap::new();
    for case in case::all() {
        // Observers are a family a kind.
        let kind = case.attrs["kind"].as_str().filter(|_| case.family == "observer");
        let family = kind.map_or(case.family.clone(), |kind| format!("observer/{kind}"));
        families.entry(family).or_default().push(case);
    }
    for (family, check) in FAMILIES {
        let cases = families.remove(family).unwrap_or_default();
        assert!(!cases.is_empty() || case::elsewhere(), "there is no case of {family}");
        cases.iter().for_each(check);
        println!("{family}: {} cases", cases.len());
    }
    let unknown: Vec<_> = families.keys().collect();
    assert!(unknown.is_empty(), "nothing checks the families {unknown:?}");
}

#[test]
fn weight_scales_are_of_the_present_weights_where_pytorch_averages() {
    let cases = case::all();
    let cases = cases.iter().filter(|case| case.family == "conv_bn_relu_qat");
    let checked =
        cases.map(folding::weight_scales_are_of_the_present_weights_where_pytorch_averages);
    assert!(checked.count() > 0, "there are no such cases");
}
