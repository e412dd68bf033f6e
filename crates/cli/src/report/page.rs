//! The page.

use anyhow::Result;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::Value;

use super::charts::{BLUE, Line, ORANGE, histogram, lines};
use super::logs::{Epoch, Logs, Stage};
use super::weights::Histogram;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:1180px;margin:2em auto;padding:0 1em;color:#222}\
h1{font-size:1.6em}h2{margin-top:2em;border-bottom:1px solid #ddd}table{border-collapse:collapse;font-variant-numeric:tabular-nums}\
th,td{padding:.2em .8em;text-align:right;border-bottom:1px solid #eee;white-space:nowrap}th:first-child,td:first-child{text-align:left}\
thead th{border-bottom:2px solid #bbb}tbody tr:hover{background:#f5f8fb}.scroll{overflow-x:auto}.charts{display:flex;flex-wrap:wrap;gap:8px}\
svg{max-width:100%;height:auto}pre{background:#f6f6f6;padding:1em;overflow-x:auto}.bad{color:#b03020}";

/// The whole page.
pub fn page(logs: &Logs, weights: &[Histogram]) -> Result<String> {
    let several = logs.stages.len() > 1;
    let stages = logs
        .stages
        .iter()
        .enumerate()
        .map(|(i, stage)| curves(stage, several.then_some(i + 1)))
        .collect::<Result<Vec<_>>>()?;
    let histograms = weights.iter().map(histogram).collect::<Result<Vec<_>>>()?;
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "Ottava: " (logs.name) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "Ottava: " (logs.name) }
                @if let Some(result) = &logs.result { h2 { "Result" } (results(result)) }
                h2 { "Training" }
                @for stage in &stages { (stage) }
                @if let Some(widths) = logs.result.as_ref().and_then(|result| result.get("widths")) {
                    h2 { "Widths" } (objects(widths, &["layer", "bits", "bytes"]))
                }
                @if let Some(analysis) = &logs.analysis { (analyzed(analysis)) }
                @if !logs.layers.is_empty() {
                    h2 { "Layers" }
                    (objects(&Value::Array(logs.layers.clone()), &["name", "op", "kernel", "in", "out", "params", "bytes", "macs", "dtype", "scale", "zero_point"]))
                }
                @if !histograms.is_empty() {
                    h2 { "Weights" }
                    div.charts { @for svg in &histograms { (PreEscaped(svg)) } }
                }
                h2 { "Configuration" }
                pre { (logs.config) }
            }
        }
    };
    Ok(markup.into_string())
}

/// The networks of a result, a row each.
fn results(result: &Value) -> Markup {
    let rows: Vec<(&String, &Value)> = result
        .as_object()
        .map(|object| object.iter().filter(|(_, row)| row.get("top1").is_some()).collect())
        .unwrap_or_default();
    let columns = ["top1", "top5", "loss", "bytes", "latency_ms"];
    html! {
        div.scroll { table {
            thead { tr { th { "network" } @for title in ["top-1 %", "top-5 %", "loss", "bytes", "ms an image"] { th { (title) } } } }
            tbody { @for (name, row) in &rows { tr {
                td { (name) }
                @for column in columns { td { (cell(row.get(column))) } }
            } } }
        } }
        @if let Some(agreement) = result.get("agreement") {
            p { "The quantization-aware network and the integers made from it choose the same class for a fraction of " (cell(Some(agreement))) " of the test images." }
        }
    }
}

/// The curves of a training.
fn curves(stage: &Stage, number: Option<usize>) -> Result<Markup> {
    let of_epochs = |pick: fn(&Epoch) -> [f64; 2]| {
        [("train", BLUE, 0), ("test", ORANGE, 1)]
            .map(|(label, color, i)| Line {
                label,
                color,
                points: stage.epochs.iter().map(|epoch| (epoch.0, pick(epoch)[i])).collect(),
            })
            .into()
    };
    let of_steps = |pick: fn(&(f64, f64, f64)) -> f64| {
        let points = thin(&stage.steps).map(|step| (step.0, pick(step))).collect();
        vec![Line { label: "", color: BLUE, points }]
    };
    let mut charts = Vec::new();
    if !stage.epochs.is_empty() {
        charts.push(lines("top-1 %", "epoch", of_epochs(|epoch| epoch.1))?);
        charts.push(lines("loss", "epoch", of_epochs(|epoch| epoch.2))?);
    }
    if !stage.steps.is_empty() {
        charts.push(lines("loss of a batch", "step", of_steps(|step| step.1))?);
        charts.push(lines("learning rate", "step", of_steps(|step| step.2))?);
    }
    Ok(html! {
        @if let Some(number) = number { h3 { "Training " (number) } }
        div.charts { @for svg in &charts { (PreEscaped(svg)) } }
    })
}

/// At most some 2000 of the steps, so that the page stays small.
fn thin(steps: &[(f64, f64, f64)]) -> impl Iterator<Item = &(f64, f64, f64)> {
    steps.iter().step_by(steps.len().div_ceil(2000).max(1))
}

/// What `analyze` found.
fn analyzed(analysis: &Value) -> Markup {
    let nodes = analysis.get("nodes").cloned().unwrap_or_default();
    let findings = analysis.get("findings").and_then(Value::as_array).cloned().unwrap_or_default();
    html! {
        h2 { "What quantization costs" }
        p { "On " (cell(analysis.get("images"))) " test images: float " (cell(analysis.pointer("/float/top1"))) " %, all quantized " (cell(analysis.pointer("/quantized/top1"))) " %. “alone” is the network with this node alone quantized." }
        (objects(&nodes, &["name", "op", "bits", "sqnr_db", "isolated_sqnr_db", "weight_sqnr_db", "clipped", "bias_of_i32", "alone"]))
        @for finding in &findings { p.bad { (cell(Some(finding))) } }
    }
}

/// A table of objects.
fn objects(rows: &Value, columns: &[&str]) -> Markup {
    let rows = rows.as_array().map(Vec::as_slice).unwrap_or_default();
    html! {
        div.scroll { table {
            thead { tr { @for column in columns { th { (column.replace('_', " ")) } } } }
            tbody { @for row in rows { tr { @for column in columns { td { (cell(row.get(column))) } } } } }
        } }
    }
}

/// A value for people.
fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(sizes)) => {
            sizes.iter().map(|size| cell(Some(size))).collect::<Vec<_>>().join("×")
        }
        Some(Value::Object(metrics)) => format!("{} %", cell(metrics.get("top1"))),
        Some(Value::Number(number)) => match number.as_f64() {
            Some(x) if x.fract() != 0.0 && x.abs() < 1e-3 => format!("{x:.2e}"),
            // Four decimals, and more of what they would make a whole number.
            Some(x) if x.fract() != 0.0 => (4..=16)
                .map(|decimals| format!("{x:.decimals$}").trim_end_matches('0').to_owned())
                .find(|text| !text.ends_with('.'))
                .unwrap_or_else(|| number.to_string()),
            _ => number.to_string(),
        },
        Some(Value::Bool(value)) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fraction_is_no_whole_number() {
        let text = |x: f64| cell(Some(&serde_json::json!(x)));
        assert_eq!([0.5, 12.34567, 3.0].map(text), ["0.5", "12.3457", "3.0"]);
        assert_eq!([0.99998, 99.999999, 0.0001].map(text), ["0.99998", "99.999999", "1.00e-4"]);
    }
}
