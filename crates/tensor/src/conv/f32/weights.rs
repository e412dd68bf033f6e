//! OIHW weights in the panels of forward and of the gradient of the input.

use super::super::ConvGeometry;
use crate::Level;
use crate::gemm::f32::{Panel, Panels, Widest};

/// For one group: `(tap, input channel)` to output channels.
pub(super) fn forward(level: Level, weight: &[f32], g: &ConvGeometry, group: usize) -> Panels {
    // Channels of which a panel's part stays in L1 while output channels are walked.
    const BLOCK: usize = 16;
    let [_, channels, kh, kw] = g.weight_shape();
    let (taps, outputs) = (kh * kw, g.out_channels / g.attrs.groups);
    let weight = &weight[group * outputs * channels * taps..];
    Panels::pack(level, Widest::Two, taps * channels, outputs, |panel, target| {
        let Panel { start, columns, width } = panel;
        for block in (0..channels).step_by(BLOCK) {
            let last = channels.min(block + BLOCK);
            // Tap by tap: the rows of one are neighbours, those of all would share their cache sets.
            for tap in 0..taps {
                let target = &mut target[(tap * channels + block) * width..];
                for j in 0..columns {
                    let first = ((start + j) * channels + block) * taps + tap;
                    let values = weight[first..].iter().step_by(taps);
                    let target = target[j..].iter_mut().step_by(width);
                    for (target, &value) in target.zip(values).take(last - block) {
                        *target = value;
                    }
                }
            }
        }
    })
}

/// For one group: `(tap, output channel)` to input channels, for the taps `rows[i]`, `columns[j]`.
pub(super) fn backward(
    level: Level,
    weight: &[f32],
    g: &ConvGeometry,
    group: usize,
    rows: &[usize],
    tap_columns: &[usize],
) -> Panels {
    let [_, channels, kh, kw] = g.weight_shape();
    let outputs = g.out_channels / g.attrs.groups;
    let weight = &weight[group * outputs * channels * kh * kw..];
    let depth = rows.len() * tap_columns.len() * outputs;
    Panels::pack(level, Widest::Two, depth, channels, |panel, target| {
        let Panel { start, columns, width } = panel;
        for o in 0..outputs {
            let values = &weight[(o * channels + start) * kh * kw..][..columns * kh * kw];
            for (i, u) in rows.iter().enumerate() {
                for (j, v) in tap_columns.iter().enumerate() {
                    let k = (i * tap_columns.len() + j) * outputs + o;
                    let taps = values[u * kw + v..].iter().step_by(kh * kw);
                    for (target, &value) in target[k * width..][..columns].iter_mut().zip(taps) {
                        *target = value;
                    }
                }
            }
        }
    })
}
