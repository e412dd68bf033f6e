//! Layers, activations and arithmetic.

use ottava_autograd::ops::{
    Add, AvgPool2d, BatchNorm2d, Clip, Conv2d, GlobalAvgPool, Linear, LogSoftmax, MaxPool2d, Mul,
    Relu, Softmax,
};
use ottava_autograd::{Kind, NodeId, NodeKind, Op};
use ottava_quant::Activation;
use ottava_tensor::Tensor;

use super::super::attributes::Check;
use super::super::constant::{Constant, Constants};
use super::super::proto::Node;
use super::window::Window;
use super::{Importer, owner};

impl Importer {
    pub(super) fn conv(&mut self, node: &Node) -> Check<NodeId> {
        let x = self.activation(node, 0)?;
        let image = self.image(x)?;
        let (name, weight) = self.constants.floats(node, 1)?;
        let dims: [usize; 4] = weight.dims("Conv").map_err(|error| error.to_string())?;
        let (attrs, geometry) = Window::conv(node, image, dims)?;
        let owner = owner(node, Some(&name));
        let weight = self.leaf(Kind::Param, (&name, &weight), ("", as_it_is), &owner, "weight")?;
        let mut inputs = vec![x, weight];
        if node.input(2).is_some() {
            let (name, bias) = self.constants.floats(node, 2)?;
            inputs.push(self.bias((&name, &bias), false, &owner, geometry.out_channels)?);
        }
        let [_, c, h, w] = geometry.output_shape();
        self.push(&owner, Conv2d { attrs }, inputs, vec![c, h, w])
    }

    /// A constant as a bias of `len` elements, one of its own for all; `negated` where it is subtracted.
    fn bias(
        &mut self,
        (name, constant): (&str, &Tensor<f32>),
        negated: bool,
        owner: &str,
        len: usize,
    ) -> Check<NodeId> {
        check_bias(name, constant.shape(), len)?;
        let make = |constant: &Tensor<f32>| {
            let bias = if negated { opposite(constant)? } else { constant.clone() };
            match bias.item() {
                Ok(one) => Ok(Tensor::full(&[len], one)),
                Err(_) => bias.reshape(&[len]).map_err(|error| error.to_string()),
            }
        };
        let made = format!("bias {negated} {len}");
        self.leaf(Kind::Param, (name, constant), (&made, make), owner, "bias")
    }

    pub(super) fn batch_norm(&mut self, node: &Node) -> Check<NodeId> {
        let x = self.activation(node, 0)?;
        let [channels, ..] = self.image(x)?;
        check_evaluates(&self.constants, node)?;
        if node.int("spatial", 1) != 1 {
            return Err("spatial = 0: statistics of each pixel".into());
        }
        let op = BatchNorm2d {
            eps: node.float("epsilon", 1e-5),
            // ONNX's momentum is what stays, PyTorch's (and ours) what is new.
            momentum: 1.0 - node.float("momentum", 0.9),
        };
        let (first, _) = self.constants.floats(node, 1)?;
        let owner = owner(node, Some(&first));
        let mut inputs = vec![x];
        let roles = ["weight", "bias", "running_mean", "running_var"];
        for (index, role) in roles.into_iter().enumerate() {
            let (name, vector) = self.constants.floats(node, index + 1)?;
            if vector.shape() != [channels] {
                let shape = vector.shape();
                return Err(format!("{name:?} has shape {shape:?}, but x {channels} channels"));
            }
            let kind = if index < 2 { Kind::Param } else { Kind::Buffer };
            // Exporters merge constants that are equal, as those of all new BatchNorms are: each has its own
            // when they are trained.
            let made = format!("{role} of {}", node.output.first().map_or("", String::as_str));
            inputs.push(self.leaf(kind, (&name, &vector), (&made, as_it_is), &owner, role)?);
        }
        let shape = self.shapes[x].clone();
        self.push(&owner, op, inputs, shape)
    }

    pub(super) fn gemm(&mut self, node: &Node) -> Check<NodeId> {
        let x = self.activation(node, 0)?;
        if node.int("transA", 0) != 0 {
            return Err("transA = 1".into());
        }
        let (alpha, beta) = (node.float("alpha", 1.0), node.float("beta", 1.0));
        let (owner, weight) = self.factor(node, node.int("transB", 0) != 0, alpha)?;
        let mut inputs = vec![x, weight];
        if node.input(2).is_some() {
            if beta != 1.0 {
                return Err(format!("beta = {beta}"));
            }
            let (name, bias) = self.constants.floats(node, 2)?;
            let out = self.shapes[weight][0];
            inputs.push(self.bias((&name, &bias), false, &owner, out)?);
        }
        self.linear(&owner, inputs)
    }

    pub(super) fn matmul(&mut self, node: &Node) -> Check<NodeId> {
        let x = self.activation(node, 0)?;
        let (owner, weight) = self.factor(node, false, 1.0)?;
        self.linear(&owner, vec![x, weight])
    }

    /// The weight of a matrix product, outputs first, times `alpha`; and what the product is called.
    fn factor(&mut self, node: &Node, outputs_first: bool, alpha: f32) -> Check<(String, NodeId)> {
        let (name, weight) = self.constants.floats(node, 1)?;
        if weight.rank() != 2 {
            return Err(format!("a weight of shape {:?}; a matrix was expected", weight.shape()));
        }
        let make = |weight: &Tensor<f32>| {
            let mut weight = weight.clone();
            if !outputs_first {
                weight = weight.transpose(0, 1).map_err(|error| error.to_string())?.contiguous();
            }
            Ok(if alpha == 1.0 { weight } else { weight.map(|w| w * alpha) })
        };
        let (owner, made) = (owner(node, Some(&name)), format!("linear {outputs_first} {alpha}"));
        let weight = self.leaf(Kind::Param, (&name, &weight), (&made, make), &owner, "weight")?;
        Ok((owner, weight))
    }

    fn linear(&mut self, name: &str, inputs: Vec<NodeId>) -> Check<NodeId> {
        let (x, weight) = (&self.shapes[inputs[0]], &self.shapes[inputs[1]]);
        match (&x[..], &weight[..]) {
            (&[k], &[out, weight_k]) if k == weight_k => self.push(name, Linear, inputs, vec![out]),
            _ => Err(format!("a weight of shape {weight:?} (outputs first) for values {x:?}")),
        }
    }

    pub(super) fn relu(&mut self, node: &Node) -> Check<NodeId> {
        let x = self.activation(node, 0)?;
        let shape = self.shapes[x].clone();
        self.push(&owner(node, None), Relu, vec![x], shape)
    }

    pub(super) fn clip(&mut self, node: &Node) -> Check<NodeId> {
        let x = self.activation(node, 0)?;
        let shape = self.shapes[x].clone();
        let name = owner(node, None);
        match interval(&self.constants, node, self.opset)? {
            Activation::RELU => self.push(&name, Relu, vec![x], shape),
            Activation { min, max } => self.push(&name, Clip { min, max }, vec![x], shape),
        }
    }

    /// `a + b`, or `a − b` where `b` is a constant.
    pub(super) fn add(&mut self, node: &Node, subtract: bool) -> Check<NodeId> {
        let constant = |index| self.constants.of(node, index).is_some();
        let (x, other) = if constant(0) && !subtract { (1, 0) } else { (0, 1) };
        let x_id = self.activation(node, x)?;
        if !constant(other) {
            if subtract {
                return Err("the difference of two values; only constants are subtracted".into());
            }
            let other = self.activation(node, other)?;
            let (a, b) = (self.shapes[x_id].clone(), &self.shapes[other]);
            if a != *b {
                return Err(format!("the sum of shapes {a:?} and {b:?}"));
            }
            return self.push(&owner(node, None), Add, vec![x_id, other], a);
        }
        let (name, values) = self.constants.floats(node, other)?;
        if let Some(id) = self.bias_of_last(x_id, (&name, &values), subtract)? {
            return Ok(id);
        }
        let make = if subtract { opposite } else { as_it_is };
        self.with_constant(node, Add, x_id, (&name, &values), make)
    }

    /// `a · b`, or `a / b`, where one is a constant (in the quotient, `b`).
    pub(super) fn mul(&mut self, node: &Node, divide: bool) -> Check<NodeId> {
        let constant = |index| self.constants.of(node, index).is_some();
        let (x, other) = if constant(0) && !divide { (1, 0) } else { (0, 1) };
        if !constant(other) {
            return Err("two values; one of them must be a constant".into());
        }
        let x = self.activation(node, x)?;
        let (name, values) = self.constants.floats(node, other)?;
        let make = if divide { reciprocal } else { as_it_is };
        self.with_constant(node, Mul, x, (&name, &values), make)
    }

    /// A constant added to a matrix product that nobody else reads is its bias; `negated` where it is
    /// subtracted.
    fn bias_of_last(
        &mut self,
        x: NodeId,
        (name, values): (&str, &Tensor<f32>),
        negated: bool,
    ) -> Check<Option<NodeId>> {
        let (last, alone) = (self.nodes.len() - 1, self.readers.get(&x) == Some(&1));
        let NodeKind::Op(Op::Linear(_), inputs) = &self.nodes[x].kind else { return Ok(None) };
        let ([out], [_, weight]) = (&self.shapes[x][..], &inputs[..]) else { return Ok(None) };
        let row = check_bias(name, values.shape(), *out);
        if x != last || !alone || row.is_err() {
            return Ok(None);
        }
        let (out, weight, input) = (*out, *weight, inputs[0]);
        // The bias must stand before the product: take that off and put it back behind.
        let product = self.nodes.pop().ok_or("no product")?;
        self.shapes.pop();
        let bias = self.bias((name, values), negated, &product.name, out)?;
        let kind = NodeKind::Op(Linear.into(), vec![input, weight, bias]);
        self.nodes.push(ottava_autograd::GraphNode { name: product.name, kind });
        self.shapes.push(vec![out]);
        Ok(Some(self.nodes.len() - 1))
    }

    fn with_constant(
        &mut self,
        node: &Node,
        op: impl Into<Op>,
        x: NodeId,
        (name, values): (&str, &Tensor<f32>),
        make: fn(&Tensor<f32>) -> Check<Tensor<f32>>,
    ) -> Check<NodeId> {
        let shape = self.shapes[x].clone();
        // Against one image, with an axis for the batch.
        let whole: Vec<usize> = std::iter::once(1).chain(shape.iter().copied()).collect();
        let together = ottava_tensor::shape::broadcast("constant", &whole, values.shape());
        if together.as_deref().ok() != Some(&whole[..]) {
            return Err(format!("{name:?} of shape {:?} with values {shape:?}", values.shape()));
        }
        let owner = owner(node, None);
        let made = (&*node.op_type, make);
        let leaf = self.leaf(Kind::Buffer, (name, values), made, &owner, "constant")?;
        self.push(&owner, op, vec![x, leaf], shape)
    }

    pub(super) fn max_pool(&mut self, node: &Node) -> Check<NodeId> {
        let x = self.activation(node, 0)?;
        let (Window { kernel, stride, padding, .. }, shape) =
            Window::max_pool(node, self.image(x)?)?;
        self.push(&owner(node, None), MaxPool2d { kernel, stride, padding }, vec![x], shape)
    }

    pub(super) fn average_pool(&mut self, node: &Node) -> Check<NodeId> {
        let x = self.activation(node, 0)?;
        let (window, count_include_pad, shape) = Window::average_pool(node, self.image(x)?)?;
        let Window { kernel, stride, padding, .. } = window;
        let op = AvgPool2d { kernel, stride, padding, count_include_pad };
        self.push(&owner(node, None), op, vec![x], shape)
    }

    /// The mean of each image; `keep` leaves its two axes of size one.
    pub(super) fn global_average(&mut self, node: &Node, keep: bool) -> Check<NodeId> {
        let x = self.activation(node, 0)?;
        let [channels, ..] = self.image(x)?;
        let name = owner(node, None);
        let mean = self.push(&name, GlobalAvgPool, vec![x], vec![channels, 1, 1])?;
        if keep { Ok(mean) } else { self.flat(&name, mean) }
    }

    pub(super) fn reduce_mean(&mut self, node: &Node) -> Check<NodeId> {
        let keep = mean_of_image(&self.constants, node)?;
        self.global_average(node, keep)
    }

    pub(super) fn softmax(&mut self, node: &Node, log: bool) -> Check<NodeId> {
        let x = self.activation(node, 0)?;
        let shape = self.shapes[x].clone();
        let axis = node.int("axis", if self.opset < 13 { 1 } else { -1 });
        if shape.len() != 1 || !matches!(axis, 1 | -1) {
            return Err(format!("axis {axis} of values {shape:?}; only over classes is supported"));
        }
        let name = owner(node, None);
        match log {
            true => self.push(&name, LogSoftmax, vec![x], shape),
            false => self.push(&name, Softmax, vec![x], shape),
        }
    }
}

/// Refuses a `BatchNormalization` or `Dropout` that does what it does in training. Of the former, old
/// versions say so by further outputs.
pub(super) fn check_evaluates(constants: &Constants, node: &Node) -> Check<()> {
    let training = match &*node.op_type {
        "BatchNormalization" => {
            let statistics = node.output.iter().skip(1).any(|name| !name.is_empty());
            statistics || node.int("training_mode", 0) != 0
        }
        "Dropout" => match (node.input(2), constants.of(node, 2).and_then(Constant::ints)) {
            (None, _) => false,
            (Some(_), mode) => mode.is_none_or(|mode| mode[..] != [0]),
        },
        _ => false,
    };
    match training {
        true => Err("training_mode = 1; export the model in evaluation mode".into()),
        false => Ok(()),
    }
}

/// Whether a constant is a bias of `len` outputs: a number for each of them, or one for all. Of another
/// shape, as a column, it is another sum for each image of the batch.
pub(super) fn check_bias(name: &str, shape: &[usize], len: usize) -> Check<()> {
    match *shape {
        [] | [1] | [1, 1] => Ok(()),
        [n] | [1, n] if n == len => Ok(()),
        _ => Err(format!(
            "bias {name:?} of shape {shape:?} for {len} outputs; [{len}], [1, {len}] or one number \
             is expected"
        )),
    }
}

/// What a `Clip` clamps to.
pub(super) fn interval(constants: &Constants, node: &Node, opset: i64) -> Check<Activation> {
    let bound = |index: usize, name: &str, open: f32| match opset {
        ..11 => Ok(node.float(name, open)),
        _ if node.raw(name).is_some() => Err(format!(
            "{name} as an attribute, in a file of opset {opset}; it is an input since 11"
        )),
        _ => Ok::<_, String>(constants.scalar(node, index, name)?.unwrap_or(open)),
    };
    let (min, max) = (bound(1, "min", f32::MIN)?, bound(2, "max", f32::MAX)?);
    // ONNX and PyTorch take the upper bound where they are the wrong way round.
    let min = if min > max { max } else { min };
    // Exporters write the largest float where there is no bound.
    Ok(Activation {
        min: if min == f32::MIN { f32::NEG_INFINITY } else { min },
        max: if max == f32::MAX { f32::INFINITY } else { max },
    })
}

/// Whether the two axes that a `ReduceMean` over an image takes away stay, with size one.
pub(super) fn mean_of_image(constants: &Constants, node: &Node) -> Check<bool> {
    let axes = constants.integers(node, 1, "axes")?.unwrap_or_default();
    let mut axes: Vec<i64> =
        axes.iter().map(|&a| if a < 0 { a.saturating_add(4) } else { a }).collect();
    axes.sort_unstable();
    if axes != [2, 3] {
        return Err(format!("axes {axes:?}; only the mean over an image (2, 3) is supported"));
    }
    Ok(node.int("keepdims", 1) != 0)
}

/// What leaves are made of constants, number by number.
fn as_it_is(constant: &Tensor<f32>) -> Check<Tensor<f32>> {
    Ok(constant.clone())
}

fn opposite(constant: &Tensor<f32>) -> Check<Tensor<f32>> {
    Ok(constant.map(|x| -x))
}

fn reciprocal(constant: &Tensor<f32>) -> Check<Tensor<f32>> {
    let reciprocal = constant.map(|x| 1.0 / x);
    let at = reciprocal.iter().position(|value| !value.is_finite());
    match at {
        Some(at) => {
            let divisor = constant.iter().nth(at).unwrap_or_default();
            Err(format!("a division by {divisor}, whose reciprocal is no finite number"))
        }
        None => Ok(reciprocal),
    }
}
