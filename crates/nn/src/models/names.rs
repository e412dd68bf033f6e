//! Other people's names of the parameters of networks that we have.

use super::mobilenet::STAGES;

/// The names by which ours may be called what a file calls `name`: words that differ (`shortcut` for
/// `downsample`, `fc` for `linear`, …), and timm's MobileNetV2.
pub(crate) fn synonyms(name: &str) -> Vec<String> {
    const WORDS: [(&str, &str); 4] = [
        ("shortcut", "downsample"),
        ("linear", "fc"),
        ("fc", "linear"),
        ("classifier", "classifier.1"), // torchvision's dropout is 0
    ];
    let parts: Vec<&str> = name.split('.').collect();
    let replaced = |&(theirs, ours): &(&str, &str)| {
        let swap = |&part: &&str| if part == theirs { ours.to_owned() } else { part.to_owned() };
        parts.contains(&theirs).then(|| parts.iter().map(swap).collect::<Vec<_>>().join("."))
    };
    WORDS.iter().filter_map(replaced).chain(timm_mobilenet(&parts)).collect()
}

/// timm's `mobilenetv2_100` names layers by what they do, torchvision counts them.
fn timm_mobilenet(parts: &[&str]) -> Option<String> {
    let (layer, leaf) = (&parts[..parts.len() - 1], parts.last()?);
    let last = STAGES.iter().map(|[_, _, blocks, _]| blocks).sum::<usize>() + 1;
    let ours = match layer {
        ["conv_stem"] => "features.0.0".into(),
        ["bn1"] => "features.0.1".into(),
        ["conv_head"] => format!("features.{last}.0"),
        ["bn2"] => format!("features.{last}.1"),
        ["blocks", stage, block, layer] => {
            let (stage, block): (usize, usize) = (stage.parse().ok()?, block.parse().ok()?);
            let [expansion, ..] = *STAGES.get(stage).filter(|[_, _, blocks, _]| block < *blocks)?;
            let before: usize = STAGES[..stage].iter().map(|[_, _, blocks, _]| blocks).sum();
            let part = match (expansion, *layer) {
                (1, "conv_dw") | (2.., "conv_pw") => "0.0",
                (_, "bn1") => "0.1",
                (2.., "conv_dw") => "1.0",
                (2.., "bn2") => "1.1",
                (1, "conv_pw") => "1",
                (1, "bn2") => "2",
                (2.., "conv_pwl") => "2",
                (2.., "bn3") => "3",
                _ => return None,
            };
            format!("features.{}.conv.{part}", 1 + before + block)
        }
        _ => return None,
    };
    Some(format!("{ours}.{leaf}"))
}
