//! Operators: float ones between quantizers, and those on codes.

use std::rc::Rc;

use ottava_quant::{Activation, Instr, QuantizedLayer, ValueId, Window as Pool};

use super::super::super::attributes::Check;
use super::super::super::constant::Constant;
use super::super::super::proto::Node;
use super::super::layers::{interval, mean_of_image};
use super::super::window::Window;
use super::super::{image_of, owner, shapes};
use super::pending::{Head, Pending};
use super::weight::{Weight, float_bias, integer_bias};
use super::{Edge, Importer};

/// Float operators.
impl Importer {
    pub(super) fn conv(&mut self, node: &Node) -> Check<()> {
        let x = self.floats(node, 0)?;
        let weight = self.float_weight(node, 1)?;
        let pending = self.convolution(node, x, &weight, 2)?;
        self.define_edge(node, Edge::Open(pending), None)
    }

    pub(super) fn gemm(&mut self, node: &Node) -> Check<()> {
        let x = self.floats(node, 0)?;
        let out = gemm_outputs(node)?;
        if node.float("beta", 1.0) != 1.0 && node.input(2).is_some() {
            return Err(format!("beta = {}", node.float("beta", 1.0)));
        }
        let weight = self.float_weight(node, 1)?;
        let pending = self.product(node, x, &weight, out, Some(2))?;
        self.define_edge(node, Edge::Open(pending), None)
    }

    pub(super) fn matmul(&mut self, node: &Node) -> Check<()> {
        let x = self.floats(node, 0)?;
        let weight = self.float_weight(node, 1)?;
        let pending = self.product(node, x, &weight, 1, None)?;
        self.define_edge(node, Edge::Open(pending), None)
    }

    pub(super) fn add(&mut self, node: &Node) -> Check<()> {
        for (value, constant) in [(0, 1), (1, 0)] {
            let name = node.input(constant).unwrap_or_default();
            if self.constants.contains(name) || self.weights.contains_key(name) {
                return self.bias_of_last(node, value, constant);
            }
        }
        let inputs = vec![self.floats(node, 0)?, self.floats(node, 1)?];
        let shape = self.builder.value(inputs[0]).shape.clone();
        let pending = Pending::new(owner(node, None), Head::Add, inputs, shape);
        self.define_edge(node, Edge::Open(pending), None)
    }

    /// Of floats, or of codes on one grid.
    pub(super) fn concat(&mut self, node: &Node) -> Check<()> {
        let first = self.activation(node, 0)?;
        let inputs = 0..node.input.len();
        let Some(signed) = first.codes else {
            let inputs = inputs.map(|i| self.floats(node, i)).collect::<Check<Vec<_>>>()?;
            let pending = self.concatenation(node, inputs)?;
            return self.define_edge(node, Edge::Open(pending), None);
        };
        let mut ids = vec![];
        for input in inputs {
            let name = self.activation(node, input)?;
            if name.codes != Some(signed) {
                return Err(format!("input {input} is no codes like those of input 0"));
            }
            ids.push(self.emit(name.edge)?);
        }
        let shapes = ids.iter().map(|&id| &*self.builder.value(id).shape);
        let (axis, _) = shapes::concatenated(node, &Vec::from_iter(shapes))?;
        let id = self.push(&owner(node, None), Instr::Concat { axis, output: None }, &ids)?;
        self.define_edge(node, Edge::Made(id), Some(signed))
    }

    fn concatenation(&self, node: &Node, inputs: Vec<ValueId>) -> Check<Pending> {
        let shapes = inputs.iter().map(|&id| &*self.builder.value(id).shape);
        let (axis, shape) = shapes::concatenated(node, &Vec::from_iter(shapes))?;
        Ok(Pending::new(owner(node, None), Head::Concat(axis), inputs, shape))
    }

    /// A constant added to a matrix product is its bias.
    fn bias_of_last(&mut self, node: &Node, value: usize, constant: usize) -> Check<()> {
        let x = self.activation(node, value)?;
        let refuse = || Err("a constant is added to what is no matrix product".into());
        let Edge::Open(pending) = &self.edges[x.edge] else { return refuse() };
        let Head::Linear(layer) = &pending.head else { return refuse() };
        if !pending.is_bare() {
            return refuse();
        }
        let mut pending = pending.clone();
        let more = self.bias(node, constant, pending.inputs[0], &layer.scales)?;
        let sums = layer.bias.iter().zip(more).map(|(&a, b)| a.checked_add(b));
        let bias = sums.collect::<Option<_>>().ok_or("a bias beyond 32 bits")?;
        // The codes are shared.
        self.layers.make(layer.scales.len())?;
        let (codes, scales) = (layer.codes.clone(), layer.scales.clone());
        pending.head = Head::Linear(Rc::new(QuantizedLayer { codes, scales, bias }));
        self.define_edge(node, Edge::Open(pending), None)
    }

    pub(super) fn relu(&mut self, node: &Node) -> Check<()> {
        match self.activation(node, 0)?.codes {
            None => self.clamped(node, Activation::RELU),
            Some(_) => Err("a Relu of codes".into()),
        }
    }

    /// Of floats, or of codes.
    pub(super) fn clip(&mut self, node: &Node) -> Check<()> {
        let x = self.activation(node, 0)?;
        let Some(signed) = x.codes else {
            return self.clamped(node, interval(&self.constants, node, self.opset)?);
        };
        let grid = self.grid_of(x.edge).ok_or("no grid")?;
        let bound = |index: usize, open: f32| match self.constants.of(node, index) {
            None if node.input(index).is_none() => Ok(open),
            None => Err("bounds that are no constants"),
            Some(Constant::Int(code)) if code.numbers.len() == 1 => {
                let code = code.numbers[0].saturating_add(if signed { 128 } else { 0 });
                Ok(grid.dequantize(code.clamp(0, 255) as i32))
            }
            Some(_) => Err("bounds of codes must be codes"),
        };
        let (min, max) = (bound(1, f32::NEG_INFINITY)?, bound(2, f32::INFINITY)?);
        self.clamped(node, Activation { min, max })
    }

    /// The mean of each image; `keep` leaves its two axes of size one.
    pub(super) fn global_average(&mut self, node: &Node, keep: bool) -> Check<()> {
        let x = self.floats(node, 0)?;
        let mut pending = self.mean(node, x, None, false)?;
        if !keep {
            let channels = pending.shape[0];
            pending = pending.moved(vec![Instr::Flatten], vec![channels])?;
        }
        self.define_edge(node, Edge::Open(pending), None)
    }

    pub(super) fn reduce_mean(&mut self, node: &Node) -> Check<()> {
        let keep = mean_of_image(&self.constants, node)?;
        self.global_average(node, keep)
    }

    pub(super) fn average_pool(&mut self, node: &Node) -> Check<()> {
        let x = self.floats(node, 0)?;
        let image = image_of(&self.builder.value(x).shape)?;
        let (window, count, shape) = Window::average_pool(node, image)?;
        let mut pending = self.mean(node, x, Some(pool(&window)), count)?;
        pending.shape = shape;
        self.define_edge(node, Edge::Open(pending), None)
    }
}

/// Operators on codes.
impl Importer {
    pub(super) fn qlinear_conv(&mut self, node: &Node) -> Check<()> {
        check_channels_first(node)?;
        let x = self.codes(node, 0)?;
        let weight = self.code_weight(node, 3, 0)?;
        let pending = self.convolution(node, x, &weight, 8)?;
        self.on_grid(node, pending, 6)
    }

    pub(super) fn qgemm(&mut self, node: &Node) -> Check<()> {
        let x = self.codes(node, 0)?;
        let out = gemm_outputs(node)?;
        let weight = self.code_weight(node, 3, out as i64)?;
        let pending = self.product(node, x, &weight, out, Some(6))?;
        if node.input(7).is_none() {
            // Its result is floats.
            return self.define_edge(node, Edge::Open(pending), None);
        }
        self.on_grid(node, pending, 7)
    }

    pub(super) fn qlinear_matmul(&mut self, node: &Node) -> Check<()> {
        let x = self.codes(node, 0)?;
        let weight = self.code_weight(node, 3, 1)?;
        let pending = self.product(node, x, &weight, 1, None)?;
        self.on_grid(node, pending, 6)
    }

    pub(super) fn qlinear_add(&mut self, node: &Node) -> Check<()> {
        let inputs = vec![self.codes(node, 0)?, self.codes(node, 3)?];
        let shape = self.builder.value(inputs[0]).shape.clone();
        let pending = Pending::new(owner(node, None), Head::Add, inputs, shape);
        self.on_grid(node, pending, 6)
    }

    /// Inputs: the grid of the result, then values, each with its grid.
    pub(super) fn qlinear_concat(&mut self, node: &Node) -> Check<()> {
        let values = (2..node.input.len()).step_by(3);
        let inputs = values.map(|i| self.codes(node, i)).collect::<Check<Vec<_>>>()?;
        let pending = self.concatenation(node, inputs)?;
        let signed = self.activation(node, 2)?.codes == Some(true);
        let (grid, signed) = self.grid(node, (0, 1), signed)?;
        self.define_edge(node, Edge::OnGrid(pending, grid), Some(signed))
    }

    pub(super) fn qlinear_average(&mut self, node: &Node) -> Check<()> {
        check_channels_first(node)?;
        let x = self.codes(node, 0)?;
        let pending = if node.op_type == "QLinearAveragePool" {
            let image = image_of(&self.builder.value(x).shape)?;
            let (window, count, shape) = Window::average_pool(node, image)?;
            let mut pending = self.mean(node, x, Some(pool(&window)), count)?;
            pending.shape = shape;
            pending
        } else {
            self.mean(node, x, None, false)?
        };
        self.on_grid(node, pending, 3)
    }

    /// Defines the node's output as codes on the grid at input `scale`, signed if its first input is.
    fn on_grid(&mut self, node: &Node, pending: Pending, scale: usize) -> Check<()> {
        let signed = self.activation(node, 0)?.codes == Some(true);
        let (grid, signed) = self.grid(node, (scale, scale + 1), signed)?;
        self.define_edge(node, Edge::OnGrid(pending, grid), Some(signed))
    }
}

/// ONNX Runtime's own operators read images of either order.
fn check_channels_first(node: &Node) -> Check<()> {
    match node.int("channels_last", 0) {
        0 => Ok(()),
        last => Err(format!("channels_last = {last}")),
    }
}

/// What only moves elements, floats or codes.
impl Importer {
    pub(super) fn max_pool(&mut self, node: &Node) -> Check<()> {
        self.moved(node, |_, shape| {
            let (window, shape) = Window::max_pool(node, image_of(shape)?)?;
            Ok((vec![Instr::MaxPool(pool(&window))], shape))
        })
    }

    pub(super) fn flatten(&mut self, node: &Node) -> Check<()> {
        self.moved(node, |_, shape| flat(shape, shapes::flattened(node, shape)?))
    }

    pub(super) fn reshape(&mut self, node: &Node) -> Check<()> {
        let batch = self.batch;
        self.moved(node, |constants, shape| {
            flat(shape, shapes::reshaped(constants, node, batch, shape)?)
        })
    }

    pub(super) fn squeeze(&mut self, node: &Node) -> Check<()> {
        self.moved(node, |constants, shape| flat(shape, shapes::squeezed(constants, node, shape)?))
    }

    pub(super) fn slice(&mut self, node: &Node) -> Check<()> {
        self.moved(node, |constants, shape| {
            let slices = shapes::slices(constants, node, shape)?;
            let last = slices.last().map_or(shape.to_vec(), |(_, shape)| shape.clone());
            let instr = |(s, _): &(ottava_autograd::ops::Slice, _)| Instr::Slice {
                axis: s.axis,
                start: s.start,
                end: s.end,
                step: s.step,
            };
            Ok((slices.iter().map(instr).collect(), last))
        })
    }

    pub(super) fn pad(&mut self, node: &Node) -> Check<()> {
        let x = self.activation(node, 0)?;
        let zero = match (x.codes, self.grid_of(x.edge)) {
            (Some(signed), Some(grid)) => grid.zero_point() - if signed { 128 } else { 0 },
            _ => 0,
        };
        self.moved(node, |constants, shape| {
            let (pads, value) = shapes::pads(constants, node, shape)?;
            if value != zero as f32 {
                return Err(format!("a value of {value}; only zero ({zero} here) is supported"));
            }
            let last = pads.last().map_or(shape.to_vec(), |(_, shape)| shape.clone());
            let instr = |(p, _): &(ottava_autograd::ops::Pad, _)| Instr::Pad {
                axis: p.axis,
                before: p.before,
                after: p.after,
            };
            Ok((pads.iter().map(instr).collect(), last))
        })
    }
}

/// What both forms share.
impl Importer {
    /// A weight that came through `DequantizeLinear`.
    fn float_weight(&self, node: &Node, index: usize) -> Check<Weight> {
        let name = node.input(index).unwrap_or_default();
        self.weights.get(name).cloned().ok_or_else(|| {
            format!(
                "weight {name:?} is not quantized: a DequantizeLinear of a constant must make it"
            )
        })
    }

    /// A weight whose codes, scales and zero-points are inputs from `index` on.
    fn code_weight(&self, node: &Node, index: usize, axis: i64) -> Check<Weight> {
        let name = node.input(index).unwrap_or_default();
        match self.constants.named(name) {
            Some(Constant::Int(codes)) => {
                Weight::new(name, codes, &self.constants, (node, index + 1, axis))
            }
            _ => Err(format!("weight {name:?} must be a constant of codes")),
        }
    }

    /// The bias at `index` in units of `x_scale · scale`; zeros where it is left out.
    fn bias(&self, node: &Node, index: usize, x: ValueId, scales: &[f32]) -> Check<Vec<i32>> {
        let x_scale = self.builder.value(x).grid().ok_or("its input is floats")?.scale();
        let units: Vec<f32> = scales.iter().map(|scale| x_scale * scale).collect();
        let Some(name) = node.input(index) else { return Ok(vec![0; units.len()]) };
        match (self.weights.get(name), self.constants.named(name)) {
            (Some(bias), _) => bias.bias(&units),
            (_, Some(Constant::Int(codes))) => integer_bias(name, codes, &units),
            (_, Some(Constant::Float(values))) => float_bias(name, values, &units),
            (None, None) => Err(format!("bias {name:?} must be a constant")),
        }
    }

    /// The layer of a weight, `out` being its axis of outputs, and of the bias at an index.
    fn layer(
        &mut self,
        node: &Node,
        x: ValueId,
        weight: &Weight,
        out: usize,
        bias: Option<usize>,
    ) -> Check<QuantizedLayer> {
        self.layers.make(weight.len())?;
        let (codes, scales) = weight.channels(out)?;
        let bias = match bias {
            Some(index) => self.bias(node, index, x, &scales)?,
            None => vec![0; scales.len()],
        };
        Ok(QuantizedLayer { codes, scales, bias })
    }

    fn convolution(
        &mut self,
        node: &Node,
        x: ValueId,
        weight: &Weight,
        bias: usize,
    ) -> Check<Pending> {
        let image = image_of(&self.builder.value(x).shape)?;
        let dims: [usize; 4] = weight.shape().try_into().map_err(|_| {
            format!(
                "weight {:?} has shape {:?}, but four axes are needed",
                weight.name,
                weight.shape()
            )
        })?;
        let (attrs, geometry) = Window::conv(node, image, dims)?;
        let layer = self.layer(node, x, weight, 0, Some(bias))?;
        let [_, c, h, w] = geometry.output_shape();
        let name = owner(node, Some(&weight.name));
        Ok(Pending::new(name, Head::Conv(Rc::new(layer), attrs), vec![x], vec![c, h, w]))
    }

    /// A matrix product; `out` is the weight's axis of outputs.
    fn product(
        &mut self,
        node: &Node,
        x: ValueId,
        weight: &Weight,
        out: usize,
        bias: Option<usize>,
    ) -> Check<Pending> {
        if weight.shape().len() != 2 {
            return Err(format!("weight {:?} has shape {:?}", weight.name, weight.shape()));
        }
        let layer = self.layer(node, x, weight, out, bias)?;
        let shape = vec![layer.scales.len()];
        let name = owner(node, Some(&weight.name));
        Ok(Pending::new(name, Head::Linear(Rc::new(layer)), vec![x], shape))
    }

    fn mean(
        &self,
        node: &Node,
        x: ValueId,
        window: Option<Pool>,
        count_padding: bool,
    ) -> Check<Pending> {
        let [channels, ..] = image_of(&self.builder.value(x).shape)?;
        let head = Head::Average { window, count_padding };
        Ok(Pending::new(owner(node, None), head, vec![x], vec![channels, 1, 1]))
    }
}

/// The axis of outputs of a `Gemm`'s weight, whose other attributes leave the product as it is.
fn gemm_outputs(node: &Node) -> Check<usize> {
    let alpha = node.float("alpha", 1.0);
    if node.int("transA", 0) != 0 || alpha != 1.0 {
        return Err(format!("transA = {}, alpha = {alpha}", node.int("transA", 0)));
    }
    Ok(if node.int("transB", 0) != 0 { 0 } else { 1 })
}

fn pool(&Window { kernel, stride, padding, .. }: &Window) -> Pool {
    Pool { kernel, stride, padding }
}

/// From a shape to the same elements in another.
fn flat(before: &[usize], after: Vec<usize>) -> Check<(Vec<Instr>, Vec<usize>)> {
    match after.len() {
        _ if after == before => Ok((vec![], after)),
        1 => Ok((vec![Instr::Flatten], after)),
        _ => Ok((vec![Instr::Reshape(after.clone())], after)),
    }
}
