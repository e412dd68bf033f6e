//! Quantization without training, widths from a budget, diagnosis and the report, as scripts use them.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn ottava(dir: &Path, args: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ottava"));
    command.current_dir(dir).args(args.split_whitespace()).output().unwrap()
}

fn json(dir: &Path, args: &str) -> Value {
    let output = ottava(dir, &format!("{args} --json --quiet"));
    assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
    let stdout = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(stdout.lines().last().unwrap()).unwrap()
}

fn refusal(dir: &Path, args: &str) -> String {
    refusal_of(1, dir, args)
}

fn refusal_of(code: i32, dir: &Path, args: &str) -> String {
    let output = ottava(dir, &format!("{args} --quiet"));
    assert_eq!(output.status.code(), Some(code), "{args}");
    String::from_utf8(output.stderr).unwrap()
}

const DATA: &str = "--data synthetic:3x16x16:4:160 --batch 20";

#[test]
fn a_network_is_quantized_without_training_and_diagnosed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    json(dir, &format!("train --model resnet8 {DATA} --epochs 4 --lr 0.05 --out run"));

    let four = "--weight-bits 4 --first-last 4 --calibration 40";
    let loss = |flags: &str| {
        let ptq = json(dir, &format!("ptq run {DATA} {four} {flags} --out four.ottava"));
        let written = json(dir, &format!("eval four.ottava {DATA}"));
        assert_eq!(written["top1"], ptq["ptq_int8"]["top1"]);
        let loss =
            ptq["ptq_int8"]["loss"].as_f64().unwrap() - ptq["float"]["loss"].as_f64().unwrap();
        (loss, std::fs::read(dir.join("four.ottava")).unwrap())
    };
    let (plain, without) = loss("");
    let helps = ["--equalize", "--adaround --adaround-iterations 20", "--bias-correction"];
    for help in helps {
        assert!(loss(help).1 != without, "{help} does nothing");
    }
    let (helped, _) = loss(&helps.join(" "));
    assert!(helped.abs() < plain.abs() + 0.01, "{helped} {plain}");
    assert!(
        refusal_of(2, dir, &format!("ptq run {DATA} --bn-folding approximate")).contains("qat")
    );

    // Linear layers alone, at run time: nothing else changes.
    let dynamic = json(dir, &format!("ptq run {DATA} --dynamic --out dynamic.ottava"));
    let nodes = dynamic["float_nodes"].as_array().unwrap();
    assert!(nodes.iter().any(|node| node["op"].as_str().unwrap().contains("dynamic")), "{nodes:?}");
    let written = json(dir, &format!("eval dynamic.ottava {DATA}"));
    assert_eq!(written["top1"], dynamic["ptq_int8"]["top1"]);
    assert!(json(dir, "bench dynamic.ottava --runs 2")["int8"]["ms_median"].is_number());
    assert!(json(dir, "inspect dynamic.ottava")["total"]["params"].as_u64().unwrap() > 70_000);

    // A budget of bytes is kept, and the widths are in the result.
    let wide = json(dir, &format!("ptq run {DATA} --calibration 40 --out wide.ottava"));
    let bytes = wide["ptq_int8"]["bytes"].as_u64().unwrap();
    let budget = bytes * 3 / 4;
    let mixed = json(
        dir,
        &format!("ptq run {DATA} --calibration 40 --size-budget {budget} --out mixed.ottava"),
    );
    assert!(mixed["ptq_int8"]["bytes"].as_u64().unwrap() <= budget, "{mixed}");
    let bits: Vec<u64> = mixed["widths"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["bits"].as_u64().unwrap())
        .collect();
    assert!(bits.contains(&8) && bits.contains(&4), "{bits:?}");
    let accurate = json(
        dir,
        &format!("ptq run {DATA} --calibration 40 --accuracy-budget 100 --out mixed.ottava"),
    );
    let narrow = accurate["widths"].as_array().unwrap().iter().filter(|row| row["bits"] == 4);
    assert_eq!(narrow.count(), bits.len() - 2, "all but the first and the last");
    let line =
        refusal(dir, &format!("ptq run {DATA} --calibration 40 --size-budget 1k --out x.ottava"));
    assert!(line.contains("--size-budget") && line.contains("narrowest"), "{line}");

    // Codes of four bits that are sums of powers of two take a byte; of three bits half of one.
    let sums = format!("ptq run {DATA} --calibration 40 --weight-levels apot --out mixed.ottava");
    let kept = json(dir, &format!("{sums} --size-budget {budget} --widths 4,3"));
    assert!(kept["ptq_int8"]["bytes"].as_u64().unwrap() <= budget, "{kept}");
    assert!(kept["widths"].as_array().unwrap().iter().any(|row| row["bits"] == 3), "{kept}");
    for (flags, words) in [("", "--widths 4,3"), ("--widths 8,4", "--widths 8: ")] {
        let line = refusal_of(2, dir, &format!("{sums} --size-budget {budget} {flags}"));
        assert!(line.contains(words), "{line}");
    }

    // Diagnosis of a float network and of a run; the report shows it.
    let analysis = json(dir, &format!("analyze run {DATA} --calibration 40 --images 32"));
    let nodes = analysis["nodes"].as_array().unwrap();
    assert!(nodes.len() > 10 && analysis["images"] == 32, "{analysis}");
    for node in nodes {
        assert!(node["isolated_sqnr_db"].as_f64().unwrap() > 10.0, "{node}");
        assert!(node["clipped"].as_f64().unwrap() < 0.2 && node["alone"]["top1"].is_number());
    }
    let qat =
        format!("qat run {DATA} --epochs 1 --calibration 40 --size-budget {budget} --out qat");
    assert!(json(dir, &qat)["qat_int8"]["bytes"].as_u64().unwrap() <= budget);
    assert_eq!(json(dir, "verify qat")["agreement"], 1.0);
    let of_run = json(dir, "analyze qat --images 32 --batch 20");
    assert_eq!(of_run, json(dir, &format!("analyze qat {DATA} --images 32")));
    let line = refusal(dir, "analyze qat --data synthetic:3x16x16:5:40");
    assert!(line.contains("5 classes"), "{line}");
    let report = json(dir, "report qat");
    let page = std::fs::read_to_string(dir.join(report["file"].as_str().unwrap())).unwrap();
    assert_eq!(page.len() as u64, report["bytes"].as_u64().unwrap());
    for part in ["<svg", "Widths", "What quantization costs", "qat_int8", "layer1.0.conv1"] {
        assert!(page.contains(part), "{part}");
    }
    assert!(!page.contains("src=") && !page.contains("href="), "the page needs other files");
    assert!(refusal(dir, "report nowhere").contains("nowhere"));
}

/// Its state is larger than the others', and is read back with the run.
#[test]
fn a_histogram_of_all_batches_comes_back_from_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    json(dir, &format!("train --model resnet8 {DATA} --epochs 1 --out run"));
    let qat = format!("qat run {DATA} --calibration 40 --observer histogram --out qat");
    json(dir, &format!("{qat} --epochs 1"));
    assert_eq!(json(dir, "verify qat")["agreement"], 1.0);
    json(dir, &format!("{qat} --epochs 2 --resume"));
}

#[test]
fn the_tutorials_recipe_works_as_written_with_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    json(dir, &format!("train --model resnet8 {DATA} --epochs 2 --lr 0.05 --out run"));
    let data = DATA.replace("--batch 20", "");
    let args =
        format!("qat run {data} --recipe tutorial --epochs 2 --calibration 40 --json --out qat");
    let output = ottava(dir, &args);
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("learning rate of 0.001 is high"));
    let config = std::fs::read_to_string(dir.join("qat/config.toml")).unwrap();
    assert!(config.contains("recipe = \"tutorial\""), "{config}");
    assert_eq!(json(dir, "verify qat")["agreement"], 1.0);
}
