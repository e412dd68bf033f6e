//! The command as scripts use it: the road end to end on small synthetic images, and what goes wrong
//! on it.

use std::path::Path;
use std::process::{Command, Output};

use ottava::interop;
use serde_json::Value;

/// Runs `ottava` in `dir`.
fn ottava(dir: &Path, args: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ottava"))
        .current_dir(dir)
        .args(args.split_whitespace())
        .output()
        .unwrap()
}

/// The JSON object of a command that succeeds.
fn json(dir: &Path, args: &str) -> Value {
    let output = ottava(dir, &format!("{args} --json --quiet"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args}: {stderr}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(stdout.lines().last().unwrap()).unwrap()
}

/// The one line of a command that fails with exit code 1.
fn refusal(dir: &Path, args: &str) -> String {
    failure(dir, args, 1)
}

/// The one line of a command that fails with this exit code.
fn failure(dir: &Path, args: &str, code: i32) -> String {
    let output = ottava(dir, &format!("{args} --quiet"));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{args}: {stderr}");
    stderr
}

const DATA: &str = "--data synthetic:3x16x16:4:160 --batch 20";

/// Everything of a result but its times and its memory.
fn figures(mut json: Value) -> Value {
    for key in ["seconds", "threads", "peak_rss_bytes"] {
        json.as_object_mut().unwrap().remove(key);
    }
    for row in json.as_object_mut().unwrap().values_mut() {
        if let Some(row) = row.as_object_mut() {
            row.remove("latency_ms");
        }
    }
    json
}

#[test]
fn the_road_from_float_to_integers() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let trained =
        json(dir, &format!("train --model resnet8 {DATA} --epochs 6 --lr 0.05 --out float"));
    let top1 = trained["top1"].as_f64().unwrap();
    assert!(top1 > 60.0, "the network does not learn: {trained}");
    let evaluated =
        json(dir, &format!("eval float/best.ottava {DATA} --logits logits.safetensors"));
    assert_eq!(evaluated["top1"], trained["top1"]);
    assert_eq!(evaluated["n"], 32);
    assert!(dir.join("logits.safetensors").exists());

    let ptq = json(dir, &format!("ptq float {DATA} --calibration 80"));
    let int8 = json(dir, &format!("eval float/int8.ottava {DATA}"));
    assert_eq!(int8["top1"], ptq["ptq_int8"]["top1"]);

    let qat = |threads: usize, out: &str| {
        let args =
            format!("qat float {DATA} --epochs 3 --calibration 80 --threads {threads} --out {out}");
        figures(json(dir, &args))
    };
    let (one, two) = (qat(1, "qat1"), qat(2, "qat2"));
    assert_eq!(one, two, "figures depend on the number of threads");
    let int8 = |file: &str| std::fs::read(dir.join(file)).unwrap();
    assert_eq!(int8("qat1/int8.ottava"), int8("qat2/int8.ottava"));
    assert_eq!(one["agreement"], 1.0);
    assert_eq!(one["qat_fake"]["top1"], one["qat_int8"]["top1"]);
    let bytes = |name: &str| one[name]["bytes"].as_f64().unwrap();
    assert!(bytes("qat_int8") < 0.28 * bytes("float"));

    let verified = json(dir, "verify qat1");
    assert_eq!(verified["agreement"], 1.0);
    let nodes = verified["nodes"].as_array().unwrap();
    assert!(nodes.len() > 10 && nodes.iter().all(|node| node["differing"] == 0), "{nodes:?}");

    for file in ["float/best.ottava", "qat1/int8.ottava"] {
        let inspected = json(dir, &format!("inspect {file}"));
        assert!(inspected["total"]["params"].as_u64().unwrap() > 70_000, "{inspected}");
        assert!(inspected["total"]["macs"].as_u64().unwrap() > 1_000_000, "{inspected}");
    }
    // The exported float network comes back as the same network; the integer one is ONNX too.
    json(dir, "export float/best.ottava float.onnx");
    let imported = json(dir, &format!("eval float.onnx {DATA}"));
    assert_eq!(imported["top1"], trained["top1"]);
    let further = format!("train --model float.onnx {DATA} --epochs 1 --lr 0.001 --out further");
    assert!(
        json(dir, &further)["loss"].as_f64().unwrap() < 2.0 * trained["loss"].as_f64().unwrap()
    );
    assert_eq!(json(dir, &format!("eval further {DATA}"))["n"], 32);
    let args = format!(
        "qat float.onnx {DATA} --epochs 1 --calibration 80 --reestimate-bn 2 --bn-folding approximate --no-relu-fusion --out qat_onnx"
    );
    assert_eq!(json(dir, &args)["agreement"], 1.0);
    assert_eq!(json(dir, "verify qat_onnx")["agreement"], 1.0);
    assert!(
        json(dir, "export qat1 int8.onnx --format qoperator")["bytes"].as_u64().unwrap() > 70_000
    );
    json(dir, "export float/best.ottava float.safetensors");
    assert_eq!(json(dir, &format!("eval float.safetensors {DATA}"))["top1"], trained["top1"]);

    let timed = json(dir, "bench qat1 --runs 3");
    assert!(timed["float"]["ms_median"].as_f64().unwrap() > 0.0);
    assert!(timed["int8"]["ms_p95"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_stopped_training_goes_on_to_the_same_weights() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let train = |flags: &str| {
        json(dir, &format!("train --model resnet8 {DATA} --schedule constant {flags}"))
    };
    train("--epochs 4 --out whole");
    train("--epochs 2 --out parts");
    train("--epochs 4 --out parts --resume");
    let checkpoint = |run: &str| std::fs::read(dir.join(run).join("checkpoint.ottava")).unwrap();
    assert_eq!(checkpoint("whole"), checkpoint("parts"));
}

/// What a run directory holds is of one run, and a command that fails changes nothing in it.
#[test]
fn a_run_is_neither_mixed_nor_lost() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let train = format!("train --model resnet8 {DATA} --epochs 1 --out run");
    json(dir, &train);
    json(dir, &format!("ptq run {DATA} --calibration 40"));
    let float = std::fs::read(dir.join("run/best.ottava")).unwrap();
    let files = |run: &str| {
        let mut files: Vec<_> = std::fs::read_dir(dir.join(run))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.clone(), std::fs::read(path).unwrap()))
            .collect();
        files.sort();
        files
    };
    let before = files("run");
    // Refused as late as anything can be: after the network and the images are there.
    for args in [
        format!("{train} --weight-decay=-1"),
        format!("{train} --batch 0"),
        format!("{train} --epochs 18446744073709551615"),
        format!("{train} --workers 100000"),
        format!("{train} --lr 0"),
        "train --model resnet8 --data synthetic:3x1x1:4:40 --epochs 1 --out run --preprocess x"
            .into(),
    ] {
        assert_eq!(ottava(dir, &args).status.code(), Some(2), "{args}");
        assert!(files("run") == before, "{args}");
    }
    json(dir, &format!("qat run {DATA} --epochs 1 --calibration 40 --out qat"));
    let of_qat = files("qat");
    std::fs::create_dir(dir.join("theirs")).unwrap();
    std::fs::write(dir.join("theirs/config.toml"), "port = 80").unwrap();
    for (flags, code) in [
        ("--layer fc=w9a8", 2),
        ("--skip nosuch", 1),
        ("--calibration 0", 2),
        ("--accuracy-budget nan", 2),
        ("--size-budget 1k", 1),
        ("--weight-decay=-1", 2),
    ] {
        let args = format!("qat run {DATA} --epochs 1 --out qat {flags}");
        assert_eq!(ottava(dir, &args).status.code(), Some(code), "{args}");
        assert!(files("qat") == of_qat, "{args}");
    }
    for (args, words) in [
        (format!("ptq run {DATA} --out run/best.ottava"), "a file of the run itself"),
        (format!("ptq run/best.ottava {DATA} --out run/best.ottava"), "the network itself"),
        (format!("ptq run/best.ottava {DATA} --out run/checkpoint.ottava"), "of the run itself"),
        (format!("eval run {DATA} --logits run/int8.ottava"), "a file of the run itself"),
        (format!("eval run {DATA} --logits run/metrics.jsonl"), "a file of the run itself"),
        ("report run --out run/best.ottava".into(), "a file of the run itself"),
        (format!("qat run {DATA} --out run"), "name another directory"),
        (format!("train --model resnet8 {DATA} --out theirs"), "a config.toml of somebody's"),
        (format!("eval run/best.ottava {DATA} --logits run/best.ottava"), "the network itself"),
        (format!("{train} --weights run"), "name another directory"),
        (format!("{train} --weights run/best.ottava --resume"), "name another directory"),
        (format!("train --model resnet8 {DATA} --resume --out none"), "no checkpoint.ottava"),
    ] {
        let line = refusal(dir, &args);
        assert!(line.contains(words), "{args}: {line}");
    }
    assert!(!dir.join("none").exists());
    assert_eq!(std::fs::read(dir.join("run/best.ottava")).unwrap(), float);

    let config = || std::fs::read_to_string(dir.join("run/config.toml")).unwrap();
    let before = config();
    refusal(dir, &format!("train --model resnet20 {DATA} --epochs 3 --resume --out run"));
    assert_eq!(config(), before);
    let resumed = ottava(
        dir,
        &format!("train --model resnet8 {DATA} --epochs 2 --lr 0.01 --resume --out run"),
    );
    let said = String::from_utf8(resumed.stderr).unwrap();
    assert!(resumed.status.success() && said.contains("other settings"), "{said}");
    let settings = "began with: --epochs, --lr";
    assert!(said.lines().any(|line| line.ends_with(settings)), "{said}");

    // Integers of other weights are worse than none.
    assert!(!dir.join("run/int8.ottava").exists(), "of the weights before more training");
    json(dir, &format!("ptq run {DATA} --calibration 40"));
    json(dir, &format!("train --model resnet8 {DATA} --epochs 2 --lr 0.01 --resume --out run"));
    assert!(dir.join("run/int8.ottava").exists(), "there was nothing left to train");
    let before = config();
    std::fs::write(dir.join("run/config.toml"), "epochs = = 1").unwrap();
    let line = refusal(dir, &format!("train --model resnet8 {DATA} --epochs 3 --resume --out run"));
    assert!(line.contains("config.toml is no TOML"), "{line}");
    assert!(dir.join("run/int8.ottava").exists(), "refused before anything is removed");
    std::fs::write(dir.join("run/config.toml"), before).unwrap();
    json(dir, &format!("{train} --seed 5"));
    assert!(!dir.join("run/int8.ottava").exists());
    // So is an earlier run's network, under the settings of one that came to nothing.
    refusal(dir, &format!("{train} --lr 1e30"));
    for file in ["best.ottava", "checkpoint.ottava"] {
        assert!(!dir.join("run").join(file).exists(), "{file}");
    }
    assert!(refusal(dir, &format!("eval run {DATA}")).contains("best.ottava"));
    // What lies in a directory that is no run stays, whatever it is called.
    let own = dir.join("own");
    std::fs::create_dir(&own).unwrap();
    std::fs::write(own.join("notes.txt"), "mine").unwrap();
    json(dir, &format!("train --model resnet8 {DATA} --epochs 1 --out own"));
    assert!(own.join("notes.txt").exists());
    std::fs::remove_dir_all(&own).unwrap();
    std::fs::create_dir(&own).unwrap();
    for (file, text) in
        [("metrics.jsonl", "{\"step\":1}\n"), ("config.toml", "seed = 1"), ("result.json", "{}")]
    {
        std::fs::write(own.join(file), text).unwrap();
        let line = refusal(dir, &format!("train --model resnet8 {DATA} --epochs 1 --out own"));
        assert!(line.contains("it holds no run"), "{line}");
        assert_eq!(std::fs::read_to_string(own.join(file)).unwrap(), text);
    }
}

/// What a run that diverges, or a damaged file, leaves of a checkpoint: the one before, and an error.
#[test]
fn a_checkpoint_is_one_that_can_be_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let train = format!("train --model resnet8 {DATA} --out run --schedule constant --warmup 0");
    json(dir, &format!("{train} --epochs 1"));
    let file = dir.join("run/checkpoint.ottava");
    let good = std::fs::read(&file).unwrap();
    let diverges = format!("{train} --epochs 3 --checkpoint-steps 1 --lr 3e38 --resume");
    let line = refusal(dir, &diverges);
    assert!(line.contains("beyond all bounds") && line.contains("lower learning rate"), "{line}");
    assert!(std::fs::read(&file).unwrap() == good, "{line}");
    std::fs::write(dir.join("run/.checkpoint.ottava.1.0.tmp"), "of a run that was killed").unwrap();
    std::fs::write(dir.join("run/.own.tmp"), "of somebody else").unwrap();
    json(dir, &format!("{train} --epochs 2 --resume"));
    assert!(!dir.join("run/.checkpoint.ottava.1.0.tmp").exists());
    assert!(dir.join("run/.own.tmp").exists());

    for key in ["epoch", "total_steps", "train_images"] {
        let mut container = ottava::quant::Container::load(&file).unwrap();
        container.metadata_mut().insert(key.into(), u64::MAX.to_string());
        std::fs::write(&file, container.to_bytes()).unwrap();
        let output = ottava(dir, &format!("{train} --epochs 3 --resume --quiet"));
        assert_ne!(output.status.code(), Some(101), "{key}: {output:?}");
        std::fs::write(&file, &good).unwrap();
    }
}

/// Batches of which the last has one image, and a network that ends with one pixel: no variance.
#[test]
fn statistics_are_estimated_from_whole_batches() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let data = "--data synthetic:3x4x4:4:61 --batch 20 --schedule constant --epochs 1";
    json(dir, &format!("train --model resnet8 {data} --out f"));
    json(dir, &format!("qat f {data} --calibration 20 --reestimate-bn 5 --out q"));
    assert!(dir.join("q/int8.ottava").exists());
}

/// A quantization-aware run goes on with the network and the flags that it began with, or not at all.
#[test]
fn a_quantized_run_is_gone_on_with_as_it_began() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    json(dir, &format!("train --model resnet8 {DATA} --epochs 1 --out run"));
    json(dir, &format!("train --model resnet8 {DATA} --epochs 1 --seed 1 --out other"));
    json(dir, "export run run.onnx");
    let qat = |flags: &str| format!("qat {DATA} --calibration 40 --schedule constant {flags}");
    json(dir, &qat("run --epochs 1 --out qat"));
    let files = || {
        ["best.ottava", "ptq.ottava", "qat.ottava", "int8.ottava", "config.toml", "metrics.jsonl"]
            .map(|file| std::fs::read(dir.join("qat").join(file)).unwrap())
    };
    let before = files();
    assert!(failure(dir, &qat("run --epochs 0 --out none"), 2).contains("--epochs 0"));
    for (args, words) in [
        (qat("other --epochs 2 --resume --out qat"), "began with another network"),
        (qat("run --epochs 2 --learn lsq --resume --out qat"), "other flags of quantization"),
        (qat("run --epochs 2 --weight-bits 4 --resume --out qat"), "--weight-bits"),
        (qat("run --epochs 2 --first-last 4 --resume --out qat"), "--first-last"),
        (qat("run --epochs 2 --accuracy-budget 5 --resume --out qat"), "--accuracy-budget"),
        (format!("ptq qat {DATA} --calibration 40"), "--out"),
        (format!("ptq qat/best.ottava {DATA} --calibration 40"), "--out"),
        (format!("ptq qat {DATA} --out no/x.ottava"), "cannot write no/x.ottava"),
        (format!("eval qat {DATA} --logits no/x.safetensors"), "cannot write no/x.safetensors"),
        ("bench qat --size 64".to_owned(), "16×16"),
        ("bench run/best.ottava --tune".to_owned(), "integer network"),
        ("bench run --tune".to_owned(), "ottava ptq"),
        (format!("eval qat {DATA} --model resnet20"), "--model resnet20"),
        (format!("eval qat/best.ottava {DATA} --model resnet20"), "--model resnet20"),
        (format!("eval run.onnx {DATA} --model resnet8"), "--model"),
        ("eval run.onnx --data synthetic:3x20x20:4:40".to_owned(), "--preprocess"),
        ("ptq run.onnx --dynamic --data synthetic:3x20x20:4:40".to_owned(), "--preprocess"),
        ("bench .".to_owned(), "int8.ottava"),
        ("export run x.onnx --weights u8".to_owned(), "--weights"),
        ("export qat x.safetensors".to_owned(), "best.ottava"),
        ("eval qat --data synthetic:3x16x16:5:40".to_owned(), "5 classes"),
    ] {
        let line = refusal(dir, &args);
        assert!(line.contains(words), "{args}: {line}");
        assert!(files() == before, "{args}");
    }
    assert!(!dir.join("int8.ottava").exists(), "of images that the network does not take");
    let line = failure(dir, &qat("run --size-budget 1m --weight-bits 4 --out none"), 2);
    assert!(line.contains("--widths"), "{line}");
    std::fs::write(dir.join("crop.toml"), "pixels = \"unit\"\ncenter_crop = 8\n").unwrap();
    let line = refusal(dir, &format!("eval qat {DATA} --preprocess crop.toml"));
    assert!(line.contains("center_crop") && line.contains("resize, crop"), "{line}");

    for network in ["run", "run.onnx"] {
        let checkpoint =
            |out: &str| std::fs::read(dir.join(out).join("checkpoint.ottava")).unwrap();
        json(
            dir,
            &qat(&format!("{network} --epochs 2 --freeze-bn 1 --freeze-observers 1 --out whole")),
        );
        json(
            dir,
            &qat(&format!("{network} --epochs 1 --freeze-bn 1 --freeze-observers 1 --out parts")),
        );
        json(
            dir,
            &qat(&format!(
                "{network} --epochs 2 --freeze-bn 1 --freeze-observers 1 --resume --out parts"
            )),
        );
        assert!(checkpoint("whole") == checkpoint("parts"), "{network}");
        assert_eq!(json(dir, "verify parts")["agreement"], 1.0);
    }
    // A program of other weights is found out.
    std::fs::copy(dir.join("qat/int8.ottava"), dir.join("parts/int8.ottava")).unwrap();
    assert!(ottava(dir, "verify parts --quiet").status.code() == Some(1));
    std::fs::remove_file(dir.join("parts/int8.ottava")).unwrap();
    assert!(refusal(dir, "verify parts").contains("--resume"));
    // Settings that nobody can read are not the same as before.
    std::fs::write(dir.join("qat/config.toml"), "epochs = = 1").unwrap();
    let line = refusal(dir, &qat("run --epochs 2 --resume --out qat"));
    assert!(line.contains("config.toml is no TOML"), "{line}");
}

/// Pictures of any kind are brought to what the network takes.
#[test]
fn pictures_are_classified() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/tests/fixtures");
    for picture in ["color.jpg", "gray.jpg", "alpha.png"] {
        std::fs::copy(format!("{fixtures}/{picture}"), dir.join(picture)).unwrap();
    }
    // Weights do not say for which size: a picture of another is made of one, however large.
    json(dir, "train --model resnet8 --data synthetic:3x16x16:4:40 --epochs 1 --out sizeless");
    json(dir, "export sizeless w.safetensors");
    let mut weights = interop::read_safetensors(&dir.join("w.safetensors")).unwrap();
    weights.metadata.clear();
    interop::write_safetensors(&dir.join("w.safetensors"), &weights, interop::Precision::F32)
        .unwrap();
    let same = "export w.safetensors w.safetensors --model resnet8";
    assert!(refusal(dir, same).contains("the network itself"));
    let bare = |preprocess: &str| {
        json(dir, &format!("predict w.safetensors large.png --preprocess unit{preprocess}"))
    };
    std::fs::copy(dir.join("alpha.png"), dir.join("large.png")).unwrap();
    assert_eq!(bare("")["images"], bare(",resize=256,crop=224")["images"]);
    for channels in [1, 3] {
        let data = format!("--data synthetic:{channels}x16x16:4:40 --batch 20");
        let run = format!("run{channels}");
        json(dir, &format!("train --model resnet8 {data} --epochs 1 --out {run}"));
        json(dir, &format!("ptq {run} {data} --calibration 20"));
        for model in ["best.ottava", "int8.ottava"] {
            let of_any_size = format!("predict {run}/{model} color.jpg");
            let pictures = "color.jpg gray.jpg alpha.png";
            let preprocess = "--preprocess unit,resize=16x16 --top 2";
            let found = json(dir, &format!("predict {run}/{model} {pictures} {preprocess}"));
            let images = found["images"].as_array().unwrap();
            assert_eq!(images.len(), 3);
            for image in images {
                assert_eq!(image["top"].as_array().unwrap().len(), 2, "{image}");
            }
            if model == "int8.ottava" {
                let advice = refusal(dir, &of_any_size);
                assert!(advice.contains("resize=16x16"), "{advice}");
            } else {
                json(dir, &of_any_size);
            }
        }
    }
}

#[test]
fn a_profiled_run_has_a_report() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    json(dir, &format!("train --model resnet8 {DATA} --epochs 1 --profile --out run"));
    json(dir, "report run");
    json(dir, &format!("qat run {DATA} --epochs 1 --calibration 40 --profile --out qat"));
    assert!(dir.join("qat/report.html").exists());
}

#[test]
fn a_config_file_says_what_flags_say() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(
        dir.join("run.toml"),
        "model = \"resnet8\"\ndata = \"synthetic:3x16x16:4:160\"\nbatch = 20\nepochs = 3\nout = \"a\"\n",
    )
    .unwrap();
    let from_file = figures(json(dir, "train --config run.toml --epochs 1"));
    let from_flags =
        figures(json(dir, &format!("train --model resnet8 {DATA} --epochs 1 --out b")));
    assert_eq!(from_file, from_flags);
    // What a run wrote of itself repeats it.
    assert_eq!(figures(json(dir, "train --config b/config.toml --out c")), from_flags);
    let qat = |args: &str| figures(json(dir, args));
    let first = qat(&format!("qat b {DATA} --epochs 1 --calibration 40 --out d"));
    assert_eq!(qat("qat --config d/config.toml --out e"), first);
    // The command line names another network than the file.
    json(dir, &format!("train --model resnet8 {DATA} --epochs 1 --seed 7 --out f"));
    assert_ne!(qat("qat f --config d/config.toml --out g")["float"], first["float"]);
}

#[test]
fn wrong_usage_is_exit_code_two() {
    let dir = tempfile::tempdir().unwrap();
    for args in
        ["", "trian", "train --epochs many", "qat", "ptq x --weight-bits 9", "demo --threads 0"]
    {
        assert_eq!(ottava(dir.path(), args).status.code(), Some(2), "{args}");
    }
    assert_eq!(ottava(dir.path(), "--help").status.code(), Some(0));
}

#[test]
fn bad_input_is_one_clear_line_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let fails = |code: i32, args: &str, words: &[&str]| {
        let line = failure(dir, args, code);
        for word in words {
            assert!(line.contains(word), "{args}: `{word}` is not in: {line}");
        }
    };
    let says = |args: &str, words: &[&str]| fails(1, args, words);
    // A flag that no job could have.
    let misused = |args: &str, words: &[&str]| fails(2, args, words);
    says("eval missing.ottava", &["missing.ottava"]);
    std::fs::write(dir.join("noise.ottava"), b"this is no model file at all").unwrap();
    says("eval noise.ottava", &["noise.ottava"]);
    std::fs::write(dir.join("noise.safetensors"), [0xFFu8; 64]).unwrap();
    says("eval noise.safetensors", &["noise.safetensors"]);
    misused(&format!("train --model resnet21 {DATA}"), &["resnet21", "resnet20"]);
    says("train --data cifar10:nowhere", &["nowhere"]);
    misused("train --data synthetic:3x16", &["synthetic"]);
    misused(&format!("train --model resnet8 {DATA} --lr 0 --out z"), &["--lr 0"]);
    misused(&format!("train --model resnet8 {DATA} --optimizer sdg --out z"), &["sdg", "adam"]);
    says(
        &format!("train --model resnet8 {DATA} --epochs 40 --lr 1e30 --out nan"),
        &["loss", "learning rate"],
    );
    assert!(!dir.join("nan/best.ottava").exists());

    // Diverged in the only epoch, where no further step notices.
    says(
        &format!("train --model resnet8 {DATA} --epochs 1 --lr 1e30 --out nan"),
        &["loss", "learning rate"],
    );
    assert!(!dir.join("nan/best.ottava").exists());
    misused(&format!("train --model resnet8 {DATA} --warmup nan --out z"), &["--warmup"]);
    says("train --data synthetic:3x16x16:4:99999999999999 --out z", &["134217728 images"]);

    // Small files that ask for networks of gigabytes.
    let empty = |name: &str, shape: &str| {
        format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[0,0]}}"#)
    };
    let header =
        format!("{{{},{}}}", empty("a", "[0,1048576,1,1]"), empty("b", "[10,0]")).into_bytes();
    let file = [&(header.len() as u64).to_le_bytes()[..], &header].concat();
    std::fs::write(dir.join("wide.safetensors"), &file).unwrap();
    says(&format!("eval wide.safetensors {DATA}"), &["no network of ours"]);
    says(&format!("eval wide.safetensors --model resnet50 {DATA}"), &["resnet50", "0 numbers"]);

    // A truncated data set and a wrong magic number.
    let idx = dir.join("idx");
    std::fs::create_dir(&idx).unwrap();
    let mut images = vec![0, 0, 8, 3, 0, 0, 0, 4, 0, 0, 0, 8, 0, 0, 0, 8];
    images.extend([7; 100]);
    let labels = [0, 0, 8, 1, 0, 0, 0, 4, 0, 1, 2, 3];
    for split in ["train", "t10k"] {
        std::fs::write(idx.join(format!("{split}-images-idx3-ubyte")), &images).unwrap();
        std::fs::write(idx.join(format!("{split}-labels-idx1-ubyte")), labels).unwrap();
    }
    says("train --model resnet8 --data idx:idx", &["train-images-idx3-ubyte"]);
    images[2] = 9;
    std::fs::write(idx.join("train-images-idx3-ubyte"), &images).unwrap();
    says("train --model resnet8 --data idx:idx", &["train-images-idx3-ubyte"]);

    // A model file cut short, and one for other images.
    json(dir, &format!("train --model resnet8 {DATA} --epochs 1 --out run"));
    let whole = std::fs::read(dir.join("run/best.ottava")).unwrap();
    std::fs::write(dir.join("cut.ottava"), &whole[..whole.len() / 2]).unwrap();
    says(&format!("eval cut.ottava {DATA}"), &["cut.ottava"]);
    says(&format!("ptq cut.ottava {DATA} --out int8.ottava"), &["cut.ottava"]);
    assert!(!dir.join("int8.ottava").exists());
    says("ptq run --data synthetic:1x16x16:4:40 --out int8.ottava", &["channel"]);
    says("ptq run --data synthetic:3x16x16:5:40 --out int8.ottava", &["5 classes"]);
    says(
        &format!("ptq run {DATA} --skip layer9.conv1 --out int8.ottava"),
        &["layer9.conv1", "layer1.0.conv1"],
    );
    says("eval run --data synthetic:1x16x16:4:40", &["1 channels", "takes 3"]);
    says("verify run", &["qat.ottava"]);
    misused("inspect run --size 4294967295", &["--size 4294967295", "4096"]);
    misused("bench run --size 0", &["--size 0"]);
    let mut wide = ottava::quant::Container::load(dir.join("run/best.ottava")).unwrap();
    wide.metadata_mut().insert("in_channels".into(), "1048576".into());
    wide.metadata_mut().insert("input".into(), "1048576x16x16".into());
    wide.save(dir.join("wide.ottava")).unwrap();
    says(&format!("eval wide.ottava {DATA}"), &["wide.ottava", "1048576 channels"]);
    let mut huge = whole.clone();
    let at = huge.windows(7).position(|bytes| bytes == b"3x16x16").unwrap();
    huge[at..at + 7].copy_from_slice(b"3x9e9x9");
    std::fs::write(dir.join("huge.ottava"), &huge).unwrap();
    says("inspect huge.ottava", &["huge.ottava", "3x9e9x9"]);
    huge[at..at + 7].copy_from_slice(b"3x99999");
    std::fs::write(dir.join("huge.ottava"), &huge).unwrap();
    says("inspect huge.ottava", &["huge.ottava", "3x99999"]);
    misused("bench run --batch 0", &["--batch 0"]);
    misused("bench run --batch 99999999999", &["--batch 99999999999"]);
    misused("bench run --tune --batch 99999999999", &["--batch 99999999999"]);
    misused(
        &format!("ptq run {DATA} --accuracy-budget=nan --out int8.ottava"),
        &["--accuracy-budget"],
    );
    #[cfg(unix)]
    says("eval /dev/null", &["/dev/null", "no file"]);
    assert!(!dir.join("int8.ottava").exists());

    // A layer left in float is named, with the reason.
    let report = json(dir, &format!("ptq run {DATA} --skip fc --out int8.ottava"));
    says("eval int8.ottava --data synthetic:3x17x17:4:40", &["[3, 17, 17]", "[3, 16, 16]"]);
    assert_eq!(report["float_nodes"][0]["name"], "fc");
    let layers = json(dir, "inspect int8.ottava");
    let layers = layers["layers"].as_array().unwrap();
    let fc = layers.iter().find(|layer| layer["name"] == "fc").unwrap();
    assert_eq!((&fc["op"], &fc["dtype"]), (&"float_linear".into(), &"f32".into()));
    assert_eq!(fc["why"], "the configuration leaves it in float");
    let leftovers: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("tmp"))
        .collect();
    assert!(leftovers.is_empty(), "{leftovers:?}");
}
