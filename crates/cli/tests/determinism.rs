//! The same seed gives the same bytes: at any number of threads and loaders, and after a kill.

use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const TRAIN: &str = "train --model resnet8 --data synthetic:3x16x16:4:480 --batch 20 --epochs 2 --lr 0.05 \
                     --checkpoint-steps 2 --quiet";

fn ottava(dir: &Path, args: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ottava"));
    command.current_dir(dir).args(args.split_whitespace());
    command.stdout(Stdio::null());
    command
}

fn run(dir: &Path, args: &str) {
    assert!(ottava(dir, args).status().unwrap().success(), "{args}");
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Kills the command, without a chance to write anything, in mid-epoch. Returns whether it was still running.
fn kill_in_mid_epoch(dir: &Path, args: &str, out: &str) -> bool {
    // SIGKILL, where there are signals.
    let status = stop_in_mid_epoch(dir, args, out, |child| child.kill().unwrap());
    status.is_some_and(|status| !status.success())
}

/// Stops the command once its run has a checkpoint in an epoch and is some steps beyond it. Returns how it ended,
/// unless that was before.
fn stop_in_mid_epoch(
    dir: &Path,
    args: &str,
    out: &str,
    stop: impl FnOnce(&mut Child),
) -> Option<ExitStatus> {
    let mut child = ottava(dir, args).spawn().unwrap();
    let run = dir.join(out);
    let deadline = Instant::now() + Duration::from_secs(300);
    loop {
        let steps = lines(&run.join("metrics.jsonl"));
        let steps = steps.iter().filter(|line| !line["step"].is_null()).count();
        if steps >= 5 && run.join("checkpoint.ottava").exists() {
            break;
        }
        assert!(Instant::now() < deadline, "no checkpoint in five minutes");
        if child.try_wait().unwrap().is_some() {
            return None;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    stop(&mut child);
    Some(child.wait().unwrap())
}

#[test]
fn threads_kills_and_loaders_leave_no_trace_in_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    run(dir, &format!("{TRAIN} --threads 1 --out one"));
    run(dir, &format!("{TRAIN} --threads 2 --workers 3 --out two"));
    let killed = format!("{TRAIN} --threads 2 --out killed");
    assert!(kill_in_mid_epoch(dir, &killed, "killed"), "the run ended before it was killed");
    let bytes = |out: &str, file: &str| std::fs::read(dir.join(out).join(file)).unwrap();
    assert_ne!(bytes("killed", "checkpoint.ottava"), bytes("one", "checkpoint.ottava"));
    run(dir, &format!("{killed} --resume"));
    for out in ["two", "killed"] {
        for file in ["checkpoint.ottava", "best.ottava"] {
            assert!(bytes("one", file) == bytes(out, file), "{out}/{file} differs from one/{file}");
        }
    }
    // Every step is in the log, once, with the same loss.
    let losses = |out: &str| -> Vec<(u64, f64)> {
        let lines = lines(&dir.join(out).join("metrics.jsonl"));
        let step = |line: &Value| Some((line["step"].as_u64()?, line["loss"].as_f64()?));
        lines.iter().filter_map(step).collect()
    };
    assert_eq!(losses("one"), losses("killed"));
}

#[test]
#[cfg(unix)]
fn an_interrupted_training_writes_a_checkpoint_of_its_last_step() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    run(dir, &format!("{TRAIN} --out whole"));
    let stopped = format!("{TRAIN} --out stopped");
    let interrupt = |child: &mut Child| {
        let pid = child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    };
    let status = stop_in_mid_epoch(dir, &stopped, "stopped", interrupt);
    assert_eq!(status.expect("it ended before").code(), Some(130));
    let steps = lines(&dir.join("stopped/metrics.jsonl"));
    run(dir, &format!("{stopped} --resume"));
    // Nothing was done twice.
    assert_eq!(lines(&dir.join("stopped/metrics.jsonl"))[..steps.len()], steps);
    let checkpoint = |out: &str| std::fs::read(dir.join(out).join("checkpoint.ottava")).unwrap();
    assert!(checkpoint("whole") == checkpoint("stopped"));
}

#[test]
fn quantization_aware_training_survives_a_kill_too() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    run(dir, &format!("{TRAIN} --epochs 1 --out float"));
    let qat = "qat float --data synthetic:3x16x16:4:480 --batch 20 --epochs 2 --calibration 40 \
               --checkpoint-steps 2 --quiet";
    run(dir, &format!("{qat} --threads 1 --out one"));
    let killed = format!("{qat} --threads 2 --out killed");
    assert!(kill_in_mid_epoch(dir, &killed, "killed"), "the run ended before it was killed");
    run(dir, &format!("{killed} --resume"));
    let bytes = |out: &str, file: &str| std::fs::read(dir.join(out).join(file)).unwrap();
    for file in ["checkpoint.ottava", "qat.ottava", "int8.ottava"] {
        assert!(bytes("one", file) == bytes("killed", file), "{file} differs");
    }
}

#[test]
fn a_profile_names_operators_and_writes_a_trace() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    run(dir, &format!("{TRAIN} --epochs 1 --profile --out run"));
    let profile = lines(&dir.join("run/metrics.jsonl"));
    let profile = profile.iter().find(|line| line["profile"].is_object()).expect("a profile");
    assert_eq!(profile["profile"]["steps"], 20);
    let operators = profile["profile"]["operators"].as_array().unwrap();
    for (op, phase) in [("conv2d", "forward"), ("conv2d", "backward"), ("optimizer", "step")] {
        let row = operators.iter().find(|row| row["op"] == op && row["phase"] == phase);
        assert!(row.expect(op)["ms_per_step"].as_f64().unwrap() > 0.0);
    }
    let trace = std::fs::read(dir.join("run/trace.json")).unwrap();
    let trace: Value = serde_json::from_slice(&trace).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    assert!(events.len() > 20 * 30 && events.iter().all(|event| event["ph"] == "X"));
}
