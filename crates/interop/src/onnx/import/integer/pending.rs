//! An operator that waits for the grid of its result.

use std::rc::Rc;

use ottava_quant::{Activation, Instr, QParams, QuantizedLayer, ValueId, Window};
use ottava_tensor::conv::ConvAttrs;

use super::super::super::attributes::Check;
use super::{Importer, on_one_grid};

/// What computes.
#[derive(Clone)]
pub(super) enum Head {
    /// The file's input comes to its first grid.
    Quantize,
    Conv(Rc<QuantizedLayer>, ConvAttrs),
    Linear(Rc<QuantizedLayer>),
    Add,
    /// One behind another along an axis, the batch being axis 0.
    Concat(usize),
    Average {
        window: Option<Window>,
        count_padding: bool,
    },
    /// Nothing: the value comes to another grid, or is clamped.
    Same,
}

/// An operator, what it reads, and what joined it since.
#[derive(Clone)]
pub(super) struct Pending {
    pub name: Rc<str>,
    pub head: Head,
    pub inputs: Vec<ValueId>,
    /// The shape of the result, without the batch.
    pub shape: Vec<usize>,
    /// The values that the result may have; zero is among them.
    clamp: Activation,
    /// What moves elements behind it.
    moves: Vec<Instr>,
}

/// More of them between an operator and its `QuantizeLinear` no exporter writes.
const MAX_MOVES: usize = 16;

impl Pending {
    pub(super) fn new(name: String, head: Head, inputs: Vec<ValueId>, shape: Vec<usize>) -> Self {
        Self { name: name.into(), head, inputs, shape, clamp: Activation::NONE, moves: vec![] }
    }

    /// Whether nothing joined it yet.
    pub(super) fn is_bare(&self) -> bool {
        self.moves.is_empty() && self.clamp == Activation::NONE
    }

    pub(super) fn clamped(mut self, clamp: Activation) -> Check<Self> {
        self.clamp = both(self.clamp, clamp)?;
        Ok(self)
    }

    pub(super) fn moved(mut self, moves: Vec<Instr>, shape: Vec<usize>) -> Check<Self> {
        self.moves.extend(moves);
        self.shape = shape;
        match self.moves.len() {
            ..=MAX_MOVES => Ok(self),
            n => Err(format!("{n} operators that only move elements before a QuantizeLinear")),
        }
    }

    /// Appends it to the program, its result on `grid`.
    pub(super) fn emit(self, grid: QParams, importer: &mut Importer) -> Check<ValueId> {
        let Self { name, head, inputs, clamp, moves, .. } = self;
        // A layer's own ReLU takes care of the lower end.
        let (activation, others) = apart(clamp);
        let output = codes(others, grid)?;
        let instr = match head {
            Head::Quantize => Some(Instr::Quantize(codes(clamp, grid)?)),
            Head::Conv(layer, attrs) => {
                let layer = Rc::unwrap_or_clone(layer);
                Some(Instr::Conv { layer, attrs, output, activation })
            }
            Head::Linear(layer) => {
                Some(Instr::Linear { layer: Rc::unwrap_or_clone(layer), output, activation })
            }
            Head::Add => Some(Instr::Add { output, activation }),
            Head::Concat(axis) => Some(Instr::Concat { axis, output: Some(codes(clamp, grid)?) }),
            Head::Average { window, count_padding } => {
                Some(Instr::AvgPool { window, count_padding, output: codes(clamp, grid)? })
            }
            Head::Same => same(importer, inputs[0], clamp, grid)?,
        };
        let mut id = match instr {
            Some(instr) => importer.push(&name, instr, &inputs)?,
            None => inputs[0],
        };
        for instr in moves {
            id = importer.push(&name, instr, &[id])?;
        }
        Ok(id)
    }
}

/// One clip behind another, which must hold zero.
pub(super) fn both(first: Activation, then: Activation) -> Check<Activation> {
    let Activation { min, max } = then;
    match then.holds_zero() {
        true => Ok(Activation { min: first.min.max(min), max: first.max.min(max) }),
        false => Err(format!("a clip to {min}..{max}, without zero")),
    }
}

/// A ReLU, if the lower bound is zero, and the bounds that are left then.
fn apart(clamp: Activation) -> (Activation, Activation) {
    match clamp.min == 0.0 {
        true => (Activation::RELU, Activation { min: f32::NEG_INFINITY, ..clamp }),
        false => (Activation::NONE, clamp),
    }
}

/// The grid with the codes of these values only; two of them at least.
fn codes(clamp: Activation, grid: QParams) -> Check<QParams> {
    let ends = clamp.clamp(grid);
    QParams::new(grid.scale(), grid.zero_point(), ends.qmin()..=ends.qmax())
        .map_err(|error| error.to_string())
}

/// The instruction that clamps a value and brings it to a grid; none if it is there.
fn same(importer: &Importer, x: ValueId, clamp: Activation, grid: QParams) -> Check<Option<Instr>> {
    let value = importer.builder.value(x);
    let (from, output) = (value.grid().ok_or("no grid")?, codes(clamp, grid)?);
    if on_one_grid(from, grid) {
        if output.qmin() <= from.qmin() && from.qmax() <= output.qmax() {
            return Ok(None);
        }
        // A ReLU, if the upper bound is that of the grid anyway.
        let whole = from.qmax() <= output.qmax();
        let clamp = if whole { Activation { max: f32::INFINITY, ..clamp } } else { clamp };
        return Ok(Some(Instr::Clip(clamp)));
    }
    if value.shape.len() != 3 {
        return Err(format!("a vector of shape {:?} comes to another grid", value.shape));
    }
    // The mean over one pixel is that pixel, rounded to the new grid.
    Ok(Some(Instr::AvgPool { window: Some(Window::new(1, 1, 0)), count_padding: false, output }))
}
