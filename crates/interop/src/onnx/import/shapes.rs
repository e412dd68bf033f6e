//! Operators that only move elements.

use ottava_autograd::NodeId;
use ottava_autograd::ops::{Flatten, Pad, Reshape, Slice};

use super::super::attributes::Check;
use super::super::constant::Constant;
use super::super::proto::Node;
use super::{Importer, owner};

impl Importer {
    /// The integers at input `index`, or in the attribute `name` (older versions of the operators).
    fn integers(&self, node: &Node, index: usize, name: &str) -> Check<Option<Vec<i64>>> {
        if let Some(values) = node.ints(name) {
            return Ok(Some(values.to_vec()));
        }
        match (node.input(index), self.constant(node, index).and_then(Constant::ints)) {
            (None, _) => Ok(None),
            (_, Some(values)) => Ok(Some(values.to_vec())),
            (Some(_), None) => {
                Err(format!("{name} must be constant; export the model with fixed sizes"))
            }
        }
    }

    /// An axis from the front, the batch being axis 0.
    fn axis(&self, x: NodeId, axis: i64) -> Check<usize> {
        let rank = self.shapes[x].len() as i64 + 1;
        let from_front = if axis < 0 { axis.saturating_add(rank) } else { axis };
        usize::try_from(from_front)
            .ok()
            .filter(|&axis| (axis as i64) < rank)
            .ok_or_else(|| format!("axis {axis} of {rank}"))
    }

    pub(super) fn flattened(&mut self, name: &str, x: NodeId) -> Check<NodeId> {
        let features = self.shapes[x].iter().product();
        self.push(name, Flatten, vec![x], vec![features])
    }

    pub(super) fn flatten(&mut self, node: &Node) -> Check<NodeId> {
        let x = self.activation(node, 0)?;
        match self.axis(x, node.int("axis", 1))? {
            1 => self.flattened(&owner(node, None), x),
            axis => Err(format!("axis {axis}; the batch (axis 0) alone must stay")),
        }
    }

    pub(super) fn reshape(&mut self, node: &Node) -> Check<NodeId> {
        let x = self.activation(node, 0)?;
        let target = self.integers(node, 1, "shape")?.ok_or("no shape")?;
        let before = self.shapes[x].clone();
        let elements: usize = before.iter().product();
        let refuse =
            || format!("values {before:?} to {target:?}; the batch must stay the first axis");
        let Some((&batch, sizes)) = target.split_first() else { return Err(refuse()) };
        // The batch may be written as open (0, −1) or as what it was when the file was made.
        if batch < -1 {
            return Err(refuse());
        }
        let zero_copies = node.int("allowzero", 0) == 0;
        let mut shape = Vec::with_capacity(sizes.len());
        let mut open = None;
        for (i, &size) in sizes.iter().enumerate() {
            match size {
                -1 if open.is_none() && batch != -1 => {
                    open = Some(i);
                    shape.push(1);
                }
                0 if zero_copies => shape.push(*before.get(i).ok_or_else(refuse)?),
                _ => shape.push(usize::try_from(size).map_err(|_| refuse())?),
            }
        }
        let known = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
        let known = known.filter(|&n| n > 0 && elements.is_multiple_of(n)).ok_or_else(refuse)?;
        if let Some(i) = open {
            shape[i] = elements / known;
        } else if known != elements {
            return Err(refuse());
        }
        let name = owner(node, None);
        if shape == before {
            return Ok(x);
        }
        if shape.len() == 1 {
            return self.flattened(&name, x);
        }
        self.push(&name, Reshape { shape: shape.clone() }, vec![x], shape)
    }

    pub(super) fn squeeze(&mut self, node: &Node) -> Check<NodeId> {
        let x = self.activation(node, 0)?;
        let axes = self.integers(node, 1, "axes")?;
        let axes = axes.ok_or("no axes: the batch could vanish")?;
        let axes = axes.iter().map(|&a| self.axis(x, a)).collect::<Check<Vec<usize>>>()?;
        let shape = self.shapes[x].clone();
        if axes.contains(&0) || axes.iter().any(|&axis| shape[axis - 1] != 1) {
            return Err(format!("axes {axes:?} of values {shape:?}"));
        }
        let kept = (0..shape.len()).filter(|i| !axes.contains(&(i + 1)));
        let shape: Vec<usize> = kept.map(|i| shape[i]).collect();
        let name = owner(node, None);
        match shape.len() {
            0 | 1 => self.flattened(&name, x),
            _ => self.push(&name, Reshape { shape: shape.clone() }, vec![x], shape),
        }
    }

    pub(super) fn slice(&mut self, node: &Node) -> Check<NodeId> {
        let mut x = self.activation(node, 0)?;
        let starts = self.integers(node, 1, "starts")?.ok_or("no starts")?;
        let ends = self.integers(node, 2, "ends")?.ok_or("no ends")?;
        let axes = match self.integers(node, 3, "axes")? {
            Some(axes) => axes,
            None => (0..starts.len() as i64).collect(),
        };
        let steps = self.integers(node, 4, "steps")?.unwrap_or_else(|| vec![1; starts.len()]);
        if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
            return Err("starts, ends, axes and steps differ in length".into());
        }
        let name = owner(node, None);
        for i in 0..starts.len() {
            let axis = self.axis(x, axes[i])?;
            if axis == 0 {
                // All of the batch is no slice.
                if starts[i] == 0 && ends[i] >= i64::from(i32::MAX) && steps[i] == 1 {
                    continue;
                }
                return Err("a slice of the batch".into());
            }
            let size = self.shapes[x][axis - 1];
            let place = |at: i64| {
                let at = if at < 0 { at.saturating_add(size as i64) } else { at };
                at.clamp(0, size as i64) as usize
            };
            let (start, end) = (place(starts[i]), place(ends[i]));
            let step = usize::try_from(steps[i]).ok().filter(|&step| step > 0);
            let step = step.ok_or_else(|| format!("step {}", steps[i]))?;
            if (start, end, step) == (0, size, 1) {
                continue;
            }
            let mut shape = self.shapes[x].clone();
            shape[axis - 1] = end.saturating_sub(start).div_ceil(step);
            x = self.push(&name, Slice { axis, start, end, step }, vec![x], shape)?;
        }
        Ok(x)
    }

    pub(super) fn pad(&mut self, node: &Node) -> Check<NodeId> {
        let mut x = self.activation(node, 0)?;
        let pads = self.integers(node, 1, "pads")?.ok_or("no pads")?;
        let value = match (node.input(2), self.constant(node, 2).and_then(Constant::float)) {
            (None, _) => node.float("value", 0.0),
            (_, Some(value)) => value.item().map_err(|error| error.to_string())?,
            (Some(_), None) => return Err("its value must be a constant".into()),
        };
        let mode = node.text("mode");
        if !matches!(mode, "" | "constant") || value != 0.0 {
            return Err(format!("mode {mode:?} with value {value}; only zeros are supported"));
        }
        let rank = self.shapes[x].len() + 1;
        let axes = match self.integers(node, 3, "axes")? {
            Some(axes) => axes.iter().map(|&a| self.axis(x, a)).collect::<Check<Vec<usize>>>()?,
            None => (0..rank).collect(),
        };
        if pads.len() != 2 * axes.len() {
            return Err(format!("{} pads for {} axes", pads.len(), axes.len()));
        }
        let name = owner(node, None);
        for (i, &axis) in axes.iter().enumerate() {
            let size = |pad: i64| usize::try_from(pad).ok().filter(|&pad| pad < 1 << 24);
            let (before, after) = (size(pads[i]), size(pads[i + axes.len()]));
            let (Some(before), Some(after)) = (before, after) else {
                return Err(format!("pads {pads:?}"));
            };
            if (before, after) == (0, 0) {
                continue;
            }
            if axis == 0 {
                return Err("padding of the batch".into());
            }
            let mut shape = self.shapes[x].clone();
            shape[axis - 1] += before + after;
            x = self.push(&name, Pad { axis, before, after }, vec![x], shape)?;
        }
        Ok(x)
    }
}
