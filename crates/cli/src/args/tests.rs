use super::*;

fn refused(line: &str) -> String {
    let error = Cli::try_parse_from(line.split_whitespace()).err();
    error.map(|error| error.to_string()).unwrap_or_default()
}

/// The help names what a flag is without being given.
#[test]
fn the_help_says_the_recipes() {
    use crate::qat::QAT;
    use crate::train::FLOAT;
    use clap::CommandFactory as _;
    let command = Cli::command();
    for name in ["train", "qat"] {
        let command = command.find_subcommand(name).unwrap();
        let says = |flag: &str, values: [String; 2]| {
            let flag = command.get_arguments().find(|arg| arg.get_id() == flag).unwrap();
            let help = flag.get_help().unwrap().to_string();
            let default = help.split("[default: ").nth(1).unwrap_or_default().to_owned();
            let [train, qat] = values;
            let each = if train == qat { train } else { format!("train {train}, qat {qat}") };
            assert_eq!(default, format!("{each}]"), "{help}");
        };
        says("epochs", [FLOAT.epochs, QAT.epochs].map(|n| n.to_string()));
        says("batch", [FLOAT.batch, QAT.batch].map(|n| n.to_string()));
        says("warmup", [FLOAT.warmup, QAT.warmup].map(|n| n.to_string()));
        says("weight_decay", [FLOAT.weight_decay, QAT.weight_decay].map(|n| n.to_string()));
        says("lr", [FLOAT.lr, QAT.lr].map(|n| n.to_string()));
        let lower = |name: String| name.to_lowercase();
        says("optimizer", [FLOAT, QAT].map(|d| lower(format!("{:?}", d.optimizer))));
        says("schedule", [FLOAT, QAT].map(|d| lower(format!("{:?}", d.schedule))));
    }
}

#[test]
fn numbers_without_effect_are_refused() {
    let line = "ottava ptq model.ottava --data images --out out";
    assert_eq!(refused(line), "");
    assert_eq!(refused(&format!("{line} --adaround --adaround-iterations 20")), "");
    let error = refused(&format!("{line} --adaround-iterations 20"));
    assert!(error.contains("--adaround"), "{error}");
    assert!(refused(&format!("{line} --adaround --adaround-iterations 0")).contains("at least 1"));
    assert!(refused(&format!("{line} --widths 8,6")).contains("--size-budget"));
    assert_eq!(refused(&format!("{line} --widths 8,6 --accuracy-budget 1")), "");
    assert_eq!(refused(&format!("{line} --dynamic --weight-bits 7 --per-tensor")), "");
    for flag in ["--skip fc", "--activation-bits 4", "--weight-levels apot", "--calibration 9"] {
        let error = refused(&format!("{line} --dynamic {flag}"));
        assert!(error.contains("--dynamic") && error.contains(&flag[..6]), "{error}");
    }
    for line in ["ptq m --batch 0", "qat m --calibration 0", "eval m --workers 257"] {
        assert_ne!(refused(&format!("ottava {line}")), "", "{line}");
    }
    assert_ne!(refused("ottava export m out.onnx --opset 12"), "");
    let seed = refused("ottava train --seed 9223372036854775808");
    assert!(seed.contains("9223372036854775807"), "{seed}");
    assert_eq!(refused("ottava verify run --images 1"), "");
    assert!(refused("ottava verify run --images 0").contains("at least 1"));
    assert!(refused("ottava verify run --images x").contains("from 1 on"));
}
