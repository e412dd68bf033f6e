//! `--config FILE.toml`: each key is a flag. Those that the command line does not have are put before its own.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::CommandFactory as _;

use crate::args::Cli;

/// The command line with the flags of its `--config` file, if it names one, put in front.
pub fn expand(args: Vec<OsString>) -> Result<Vec<OsString>> {
    let Some(path) = named(&args) else { return Ok(args) };
    // A flag that may be repeated would otherwise get the values of both.
    let given = |flag: &str| {
        args.iter().filter_map(|arg| arg.to_str()).any(|arg| {
            arg.strip_prefix(flag).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
        })
    };
    // Of flags that exclude each other, one on the command line is instead of the file's.
    let rivals = rivals();
    let superseded = |flag: &str| {
        let mut groups = rivals.iter().filter(|group| group.iter().any(|member| member == flag));
        given(flag) || groups.any(|group| group.iter().any(|rival| given(rival)))
    };
    let flags = flags(Path::new(&path), superseded)?;
    // program, command, then the file's flags.
    let at = args.len().min(2);
    let mut expanded = args;
    expanded.splice(at..at, flags);
    Ok(expanded)
}

/// Flags that cannot stand beside each other, group by group.
fn rivals() -> Vec<Vec<String>> {
    let mut command = Cli::command();
    // Groups know their members from then on.
    command.build();
    let commands = command.get_subcommands();
    let groups = commands.flat_map(clap::Command::get_groups).cloned();
    let groups = groups.filter_map(|mut group| (!group.is_multiple()).then_some(group));
    let flag = |id: &clap::Id| format!("--{}", id.as_str().replace('_', "-"));
    groups.map(|group| group.get_args().map(flag).collect()).collect()
}

/// Flags that may be given more than once.
fn repeated() -> Vec<String> {
    let command = Cli::command();
    let flags = command.get_subcommands().flat_map(clap::Command::get_arguments);
    let flags = flags.filter(|flag| matches!(flag.get_action(), clap::ArgAction::Append));
    flags.filter_map(|flag| Some(format!("--{}", flag.get_long()?))).collect()
}

fn named(args: &[OsString]) -> Option<OsString> {
    let mut found = None;
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--" {
            break;
        } else if arg == "--config" {
            found = args.next().cloned();
        } else if let Some(path) = arg.to_str().and_then(|arg| arg.strip_prefix("--config=")) {
            found = Some(path.into());
        }
    }
    found
}

/// The flags of a file but those that are `given` already.
fn flags(path: &Path, given: impl Fn(&str) -> bool) -> Result<Vec<OsString>> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
    let table: toml::Table = toml::from_str(&text).map_err(|error| {
        anyhow::anyhow!("{shown}: {}", error.to_string().trim().replace('\n', " "))
    })?;
    let repeated = repeated();
    let mut flags = Vec::new();
    for (key, value) in table {
        let flag = format!("--{}", key.replace('_', "-"));
        if given(&flag) {
            continue;
        }
        let values = match value {
            // Of a flag that has one value, the last would count.
            toml::Value::Array(values) if values.len() != 1 && !repeated.contains(&flag) => {
                bail!(
                    "{shown}: `{key}` has one value, not a list of {}; what is a list on the command line too is text, as in \"1,2\"",
                    values.len()
                )
            }
            toml::Value::Array(values) => values,
            value => vec![value],
        };
        for value in values {
            match value {
                toml::Value::Boolean(true) => flags.push(flag.clone().into()),
                toml::Value::Boolean(false) => {}
                toml::Value::String(text) => flags.push(format!("{flag}={text}").into()),
                toml::Value::Integer(number) => flags.push(format!("{flag}={number}").into()),
                toml::Value::Float(number) => flags.push(format!("{flag}={number}").into()),
                toml::Value::Datetime(_) | toml::Value::Array(_) | toml::Value::Table(_) => {
                    bail!("{shown}: `{key}` is no flag's value; write text, a number or true")
                }
            }
        }
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_the_file_come_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.toml");
        std::fs::write(
            &path,
            "epochs = 3\nper_tensor = true\njson = false\nskip = [\"a\", \"b\"]\n",
        )
        .unwrap();
        let args = ["ottava", "qat", "--epochs", "5", "--config"].map(OsString::from);
        let args = [args.as_slice(), &[path.clone().into()]].concat();
        let expanded = expand(args).unwrap();
        let expanded: Vec<_> = expanded.iter().map(|a| a.to_str().unwrap()).collect();
        assert_eq!(
            expanded[..7],
            ["ottava", "qat", "--per-tensor", "--skip=a", "--skip=b", "--epochs", "5"]
        );
        // Of a flag that may be repeated, the command line's alone count.
        let config = format!("--config={}", path.display());
        let expanded = expand(["ottava", "qat", "--skip=c", &config].map(OsString::from).to_vec());
        assert_eq!(expanded.unwrap()[2..5], ["--epochs=3", "--per-tensor", "--skip=c"]);
        // So does one of those that exclude it.
        std::fs::write(&path, "size_budget = 9000\nwidths = [8, 4]\n").unwrap();
        let line = ["ottava", "qat", "--accuracy-budget=1", &config].map(OsString::from);
        assert_eq!(expand(line.to_vec()).unwrap()[2..4], ["--widths=8", "--widths=4"]);
        // A list is of flags that may be repeated.
        std::fs::write(&path, "color_jitter = [0.4, 0.4, 0.4, 0.1]\n").unwrap();
        let error = expand(["ottava", "train", &config].map(OsString::from).to_vec()).unwrap_err();
        assert!(error.to_string().contains("`color_jitter` has one value"), "{error}");
        std::fs::write(&path, "epochs = ").unwrap();
        let args = ["x".into(), "--config".into(), path.into()];
        assert_eq!(expand(args.to_vec()).unwrap_err().to_string().lines().count(), 1);
    }
}
