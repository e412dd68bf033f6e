//! Operators that only move elements: what becomes of a shape (the batch left out), and which elements
//! go where. Both importers ask here.

use ottava_autograd::NodeId;
use ottava_autograd::ops::{Concat, Flatten, Pad, Reshape, Slice};

use super::super::attributes::Check;
use super::super::constant::{Constant, Constants, MAX_RANK};
use super::super::proto::Node;
use super::{Importer, check_elements, owner};

/// Operators that work on one axis each, with the shape behind each of them.
type Steps<T> = Vec<(T, Vec<usize>)>;

/// An axis from the front, the batch being axis 0.
pub(super) fn axis(shape: &[usize], axis: i64) -> Check<usize> {
    let rank = shape.len() as i64 + 1;
    let from_front = if axis < 0 { axis.saturating_add(rank) } else { axis };
    usize::try_from(from_front)
        .ok()
        .filter(|&axis| (axis as i64) < rank)
        .ok_or_else(|| format!("axis {axis} of {rank}"))
}

/// The shape after a `Flatten`.
pub(super) fn flattened(node: &Node, shape: &[usize]) -> Check<Vec<usize>> {
    match axis(shape, node.int("axis", 1))? {
        1 => Ok(vec![elements(shape)?]),
        axis => Err(format!("axis {axis}; the batch (axis 0) alone must stay")),
    }
}

/// The axis of a `Concat`, and the shape after it.
pub(super) fn concatenated(node: &Node, shapes: &[&[usize]]) -> Check<(usize, Vec<usize>)> {
    let [first, others @ ..] = shapes else { return Err("no inputs".into()) };
    let axis = match axis(first, node.int("axis", 0))? {
        0 => return Err("concatenates batches".into()),
        axis => axis,
    };
    let mut shape = first.to_vec();
    for next in others {
        let fits = next.len() == shape.len()
            && (0..shape.len()).all(|i| i + 1 == axis || next[i] == shape[i]);
        if !fits {
            return Err(format!("values {shape:?} and {next:?} along axis {axis}"));
        }
        let whole = shape[axis - 1].checked_add(next[axis - 1]);
        shape[axis - 1] = whole.ok_or("values longer than memory along the axis")?;
    }
    Ok((axis, shape))
}

/// The shape after a `Reshape`, in a file whose batch is fixed or open.
pub(super) fn reshaped(
    constants: &Constants,
    node: &Node,
    batch: Option<usize>,
    before: &[usize],
) -> Check<Vec<usize>> {
    let target = constants.integers(node, 1, "shape")?.ok_or("no shape")?;
    let elements = elements(before)?;
    let refuse = || format!("values {before:?} to {target:?}; the batch must stay the first axis");
    let Some((&first, sizes)) = target.split_first() else { return Err(refuse()) };
    if target.len() > MAX_RANK {
        return Err(format!(
            "a shape of {} axes; no tensor has more than {MAX_RANK}",
            target.len()
        ));
    }
    let zero_copies = node.int("allowzero", 0) == 0;
    let stays = match (first, batch) {
        (-1, _) => true,
        (0, _) => zero_copies,
        (first, Some(batch)) => usize::try_from(first) == Ok(batch),
        // Such a file is for batches of this size alone, if the other sizes are known; else the first
        // axis takes in what is no batch.
        (first, None) => first > 0 && !sizes.contains(&-1),
    };
    if !stays {
        return Err(refuse());
    }
    let mut shape = Vec::with_capacity(sizes.len());
    let mut open = None;
    for (i, &size) in sizes.iter().enumerate() {
        match size {
            -1 if open.is_none() && first != -1 => {
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
    Ok(shape)
}

/// The shape after a `Squeeze`.
pub(super) fn squeezed(constants: &Constants, node: &Node, shape: &[usize]) -> Check<Vec<usize>> {
    let axes = constants.integers(node, 1, "axes")?.ok_or("no axes: the batch could vanish")?;
    let axes = axes.iter().map(|&a| axis(shape, a)).collect::<Check<Vec<usize>>>()?;
    if axes.contains(&0) || axes.iter().any(|&axis| shape[axis - 1] != 1) {
        return Err(format!("axes {axes:?} of values {shape:?}"));
    }
    let kept: Vec<usize> =
        (0..shape.len()).filter(|i| !axes.contains(&(i + 1))).map(|i| shape[i]).collect();
    Ok(if kept.is_empty() { vec![1] } else { kept })
}

/// The slices of a `Slice`, one axis after the other, each with the shape behind it.
pub(super) fn slices(constants: &Constants, node: &Node, shape: &[usize]) -> Check<Steps<Slice>> {
    let starts = constants.integers(node, 1, "starts")?.ok_or("no starts")?;
    let ends = constants.integers(node, 2, "ends")?.ok_or("no ends")?;
    let axes = match constants.integers(node, 3, "axes")? {
        Some(axes) => axes,
        None => (0..starts.len() as i64).collect(),
    };
    let steps =
        constants.integers(node, 4, "steps")?.unwrap_or_else(|| vec![1; starts.len()].into());
    if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
        return Err("starts, ends, axes and steps differ in length".into());
    }
    let axes = axes.iter().map(|&a| axis(shape, a)).collect::<Check<Vec<usize>>>()?;
    check_each_once(&axes)?;
    let mut shape = shape.to_vec();
    let mut slices = Vec::new();
    for (i, &axis) in axes.iter().enumerate() {
        if axis == 0 {
            // All of the batch is no slice.
            if starts[i] == 0 && ends[i] >= i64::from(i32::MAX) && steps[i] == 1 {
                continue;
            }
            return Err("a slice of the batch".into());
        }
        let size = shape[axis - 1];
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
        shape[axis - 1] = end.saturating_sub(start).div_ceil(step);
        slices.push((Slice { axis, start, end, step }, shape.clone()));
    }
    Ok(slices)
}

/// The pads of a `Pad`, one axis after the other, each with the shape behind it; and the number that
/// fills them.
pub(super) fn pads(
    constants: &Constants,
    node: &Node,
    shape: &[usize],
) -> Check<(Steps<Pad>, f32)> {
    let pads = constants.integers(node, 1, "pads")?.ok_or("no pads")?;
    let value = match constants.of(node, 2) {
        Some(Constant::Int(code)) if code.numbers.len() == 1 => code.numbers[0] as f32,
        _ => match constants.scalar(node, 2, "its value")? {
            Some(value) => value,
            None => node.float("value", 0.0),
        },
    };
    let mode = node.text("mode");
    if !matches!(mode, "" | "constant") {
        return Err(format!("mode {mode:?}; only constant values are supported"));
    }
    let axes = match constants.integers(node, 3, "axes")? {
        Some(axes) => axes.iter().map(|&a| axis(shape, a)).collect::<Check<Vec<usize>>>()?,
        None => (0..shape.len() + 1).collect(),
    };
    check_each_once(&axes)?;
    if pads.len() != 2 * axes.len() {
        return Err(format!("{} pads for {} axes", pads.len(), axes.len()));
    }
    let mut shape = shape.to_vec();
    let mut result = Vec::new();
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
        shape[axis - 1] += before + after;
        check_elements(&shape)?;
        result.push((Pad { axis, before, after }, shape.clone()));
    }
    Ok((result, value))
}

/// ONNX does not say what an axis means that comes twice.
fn check_each_once(axes: &[usize]) -> Check<()> {
    let twice = (1..axes.len()).find(|&i| axes[..i].contains(&axes[i]));
    match twice.map(|i| axes[i]) {
        Some(axis) => Err(format!("axis {axis} twice")),
        None => Ok(()),
    }
}

/// How many there are of a value of this shape.
fn elements(shape: &[usize]) -> Check<usize> {
    let count = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
    count.ok_or_else(|| format!("a value of shape {shape:?} is larger than can be counted"))
}

impl Importer {
    pub(super) fn flat(&mut self, name: &str, x: NodeId) -> Check<NodeId> {
        let features = elements(&self.shapes[x])?;
        self.push(name, Flatten, vec![x], vec![features])
    }

    pub(super) fn flatten(&mut self, node: &Node) -> Check<NodeId> {
        let x = self.activation(node, 0)?;
        let shape = flattened(node, &self.shapes[x])?;
        self.push(&owner(node, None), Flatten, vec![x], shape)
    }

    pub(super) fn reshape(&mut self, node: &Node) -> Check<NodeId> {
        let x = self.activation(node, 0)?;
        let shape = reshaped(&self.constants, node, self.batch, &self.shapes[x])?;
        self.shaped(node, x, shape)
    }

    pub(super) fn concat(&mut self, node: &Node) -> Check<NodeId> {
        let values = (0..node.input.len()).map(|i| self.activation(node, i));
        let values = values.collect::<Check<Vec<NodeId>>>()?;
        let shapes = Vec::from_iter(values.iter().map(|&value| &*self.shapes[value]));
        let (axis, shape) = concatenated(node, &shapes)?;
        self.push(&owner(node, None), Concat { axis }, values, shape)
    }

    pub(super) fn squeeze(&mut self, node: &Node) -> Check<NodeId> {
        let x = self.activation(node, 0)?;
        let shape = squeezed(&self.constants, node, &self.shapes[x])?;
        self.shaped(node, x, shape)
    }

    fn shaped(&mut self, node: &Node, x: NodeId, shape: Vec<usize>) -> Check<NodeId> {
        let name = owner(node, None);
        if shape == self.shapes[x] {
            return Ok(x);
        }
        match shape.len() {
            1 => self.flat(&name, x),
            _ => self.push(&name, Reshape { shape: shape.clone() }, vec![x], shape),
        }
    }

    pub(super) fn slice(&mut self, node: &Node) -> Check<NodeId> {
        let mut x = self.activation(node, 0)?;
        for (slice, shape) in slices(&self.constants, node, &self.shapes[x])? {
            x = self.push(&owner(node, None), slice, vec![x], shape)?;
        }
        Ok(x)
    }

    pub(super) fn pad(&mut self, node: &Node) -> Check<NodeId> {
        let mut x = self.activation(node, 0)?;
        let (pads, value) = pads(&self.constants, node, &self.shapes[x])?;
        if value != 0.0 {
            return Err(format!("a value of {value}; only zeros are supported"));
        }
        for (pad, shape) in pads {
            x = self.push(&owner(node, None), pad, vec![x], shape)?;
        }
        Ok(x)
    }
}
