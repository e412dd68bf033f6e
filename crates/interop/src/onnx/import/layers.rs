//! Layers, activations and arithmetic.

use ottava_autograd::ops::{
    Add, AvgPool2d, BatchNorm2d, Clip, Conv2d, GlobalAvgPool, Linear, LogSoftmax, MaxPool2d, Mul,
    Relu, Softmax,
};
use ottava_autograd::{Kind, NodeId, NodeKind, Op};
use ottava_tensor::Tensor;
use ottava_tensor::conv::{ConvAttrs, ConvGeometry, PoolGeometry};

use super::super::attributes::Check;
use super::super::constant::Constant;
use super::super::proto::Node;
use super::{Importer, owner};

/// The window of a convolution or pooling.
struct Window {
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 4],
    dilation: [usize; 2],
}

impl Window {
    /// `auto_pad` says where missing rows and columns go: so that the output has `⌈size / stride⌉`.
    fn new(node: &Node, kernel: [usize; 2], [_, height, width]: [usize; 3]) -> Check<Self> {
        let stride: [usize; 2] = node.sizes("strides", 1)?;
        let dilation: [usize; 2] = node.sizes("dilations", 1)?;
        if kernel.contains(&0) || stride.contains(&0) || dilation.contains(&0) {
            return Err(format!("kernel {kernel:?}, stride {stride:?}, dilation {dilation:?}"));
        }
        let mut padding: [usize; 4] = node.sizes("pads", 0)?;
        let mode = node.text("auto_pad");
        match mode {
            "" | "NOTSET" => {}
            "VALID" => padding = [0; 4],
            "SAME_UPPER" | "SAME_LOWER" => {
                for (axis, size) in [height, width].into_iter().enumerate() {
                    let window = (kernel[axis] - 1) * dilation[axis] + 1;
                    let outputs = size.div_ceil(stride[axis]);
                    let missing = ((outputs - 1) * stride[axis] + window).saturating_sub(size);
                    let (less, more) = (missing / 2, missing.div_ceil(2));
                    let upper = mode == "SAME_UPPER";
                    padding[axis] = if upper { less } else { more };
                    padding[axis + 2] = if upper { more } else { less };
                }
            }
            other => return Err(format!("auto_pad {other:?}")),
        }
        Ok(Self { kernel, stride, padding, dilation })
    }
}

impl Importer {
    pub(super) fn conv(&mut self, node: &Node) -> Check<NodeId> {
        let x = self.activation(node, 0)?;
        let image = self.image(x)?;
        let (name, weight) = self.weight(node, 1)?;
        let dims: [usize; 4] = weight.dims("Conv").map_err(|error| error.to_string())?;
        let [_, _, kh, kw] = dims;
        let kernel: [usize; 2] = match node.ints("kernel_shape") {
            Some(_) => node.sizes("kernel_shape", 0)?,
            None => [kh, kw],
        };
        if kernel != [kh, kw] {
            return Err(format!("kernel_shape {kernel:?} with a weight of shape {dims:?}"));
        }
        let Window { stride, padding, dilation, .. } = Window::new(node, kernel, image)?;
        let groups = usize::try_from(node.int("group", 1)).map_err(|_| "a negative group")?;
        let attrs = ConvAttrs { stride, padding, dilation, groups };
        let geometry = ConvGeometry::new([1, image[0], image[1], image[2]], dims, attrs)
            .map_err(|error| error.to_string())?;
        let owner = owner(node, Some(&name));
        let mut inputs = vec![x, self.leaf(Kind::Param, (&name, weight), "", &owner, "weight")];
        if node.input(2).is_some() {
            inputs.push(self.bias(node, 2, &owner, geometry.out_channels)?);
        }
        let [_, c, h, w] = geometry.output_shape();
        self.push(&owner, Conv2d { attrs }, inputs, vec![c, h, w])
    }

    /// The bias at `index`, which has `len` elements, or one for all.
    fn bias(&mut self, node: &Node, index: usize, owner: &str, len: usize) -> Check<NodeId> {
        let (name, bias) = self.weight(node, index)?;
        let bias = match bias.len() {
            1 if len != 1 => Tensor::full(&[len], bias.to_vec()[0]),
            n if n == len => bias.reshape(&[len]).map_err(|error| error.to_string())?,
            n => return Err(format!("{name:?} has {n} elements, but there are {len} outputs")),
        };
        let made = format!("bias {len}");
        Ok(self.leaf(Kind::Param, (&name, bias), &made, owner, "bias"))
    }

    pub(super) fn batch_norm(&mut self, node: &Node) -> Check<NodeId> {
        let x = self.activation(node, 0)?;
        let [channels, ..] = self.image(x)?;
        let op = BatchNorm2d {
            eps: node.float("epsilon", 1e-5),
            // ONNX's momentum is what stays, PyTorch's (and ours) what is new.
            momentum: 1.0 - node.float("momentum", 0.9),
        };
        let (first, _) = self.weight(node, 1)?;
        let owner = owner(node, Some(&first));
        let mut inputs = vec![x];
        let roles = ["weight", "bias", "running_mean", "running_var"];
        for (index, role) in roles.into_iter().enumerate() {
            let (name, vector) = self.weight(node, index + 1)?;
            if vector.shape() != [channels] {
                let shape = vector.shape();
                return Err(format!("{name:?} has shape {shape:?}, but x {channels} channels"));
            }
            let kind = if index < 2 { Kind::Param } else { Kind::Buffer };
            // Two roles may share a constant in the file, but not when they are trained.
            inputs.push(self.leaf(kind, (&name, vector), role, &owner, role));
        }
        let shape = self.shapes[x].clone();
        self.push(&owner, op, inputs, shape)
    }

    pub(super) fn gemm(&mut self, node: &Node) -> Check<NodeId> {
        let x = self.activation(node, 0)?;
        if node.int("transA", 0) != 0 {
            return Err("transA = 1".into());
        }
        let (name, mut weight) = self.weight(node, 1)?;
        let transposed = node.int("transB", 0) != 0;
        if !transposed {
            weight = transpose(&weight)?;
        }
        let (alpha, beta) = (node.float("alpha", 1.0), node.float("beta", 1.0));
        if alpha != 1.0 {
            weight = weight.map(|w| w * alpha);
        }
        let [out, _] = weight.dims("Gemm").map_err(|error| error.to_string())?;
        let owner = owner(node, Some(&name));
        let made = format!("linear {transposed} {alpha}");
        let weight = self.leaf(Kind::Param, (&name, weight), &made, &owner, "weight");
        let mut inputs = vec![x, weight];
        if node.input(2).is_some() {
            if beta != 1.0 {
                return Err(format!("beta = {beta}"));
            }
            inputs.push(self.bias(node, 2, &owner, out)?);
        }
        self.linear(&owner, inputs)
    }

    pub(super) fn matmul(&mut self, node: &Node) -> Check<NodeId> {
        let x = self.activation(node, 0)?;
        let (name, weight) = self.weight(node, 1)?;
        let weight = transpose(&weight)?;
        let owner = owner(node, Some(&name));
        let weight = self.leaf(Kind::Param, (&name, weight), "linear", &owner, "weight");
        self.linear(&owner, vec![x, weight])
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
        let bound = |index: usize, name: &str, open: f32| -> Check<f32> {
            if self.opset < 11 {
                return Ok(node.float(name, open));
            }
            match (node.input(index), self.constant(node, index).and_then(Constant::float)) {
                (None, _) => Ok(open),
                (_, Some(bound)) => bound.item().map_err(|error| format!("{name}: {error}")),
                (Some(_), None) => Err(format!("{name} must be a constant")),
            }
        };
        let (min, max) = (bound(1, "min", f32::MIN)?, bound(2, "max", f32::MAX)?);
        let shape = self.shapes[x].clone();
        let name = owner(node, None);
        if (min, max) == (0.0, f32::MAX) {
            return self.push(&name, Relu, vec![x], shape);
        }
        self.push(&name, Clip { min, max }, vec![x], shape)
    }

    /// `a + b`, or `a − b` where `b` is a constant.
    pub(super) fn add(&mut self, node: &Node, subtract: bool) -> Check<NodeId> {
        let constant = |index| self.constant(node, index).is_some();
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
        let (name, mut values) = self.weight(node, other)?;
        if subtract {
            values = values.map(|x| -x);
        }
        if let Some(id) = self.bias_of_last(node, x_id, (&name, &values))? {
            return Ok(id);
        }
        self.with_constant(node, Add, x_id, (&name, values))
    }

    /// `a · b`, or `a / b`, where one is a constant (in the quotient, `b`).
    pub(super) fn mul(&mut self, node: &Node, divide: bool) -> Check<NodeId> {
        let constant = |index| self.constant(node, index).is_some();
        let (x, other) = if constant(0) && !divide { (1, 0) } else { (0, 1) };
        if !constant(other) {
            return Err("two values; one of them must be a constant".into());
        }
        let x = self.activation(node, x)?;
        let (name, mut values) = self.weight(node, other)?;
        if divide {
            values = values.map(|x| 1.0 / x);
        }
        self.with_constant(node, Mul, x, (&name, values))
    }

    /// A constant added to a matrix product that nobody else reads is its bias.
    fn bias_of_last(
        &mut self,
        node: &Node,
        x: NodeId,
        (name, values): (&str, &Tensor<f32>),
    ) -> Check<Option<NodeId>> {
        let last = self.nodes.len() - 1;
        let alone = [0, 1].iter().any(|&i| {
            let read_once = |name: &str| self.uses.get(name) == Some(&1);
            node.input(i).is_some_and(|name| self.values.get(name) == Some(&x) && read_once(name))
        });
        let NodeKind::Op(Op::Linear(_), inputs) = &self.nodes[x].kind else { return Ok(None) };
        let ([out], [_, weight]) = (&self.shapes[x][..], &inputs[..]) else { return Ok(None) };
        if x != last || !alone || values.len() != *out {
            return Ok(None);
        }
        let (out, weight, input) = (*out, *weight, inputs[0]);
        let bias = values.reshape(&[out]).map_err(|error| error.to_string())?;
        // The bias must stand before the product: take that off and put it back behind.
        let product = self.nodes.pop().ok_or("no product")?;
        self.shapes.pop();
        let bias = self.leaf(Kind::Param, (name, bias), "bias", &product.name, "bias");
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
        (name, values): (&str, Tensor<f32>),
    ) -> Check<NodeId> {
        let shape = self.shapes[x].clone();
        // Against one image, with an axis for the batch.
        let whole: Vec<usize> = std::iter::once(1).chain(shape.iter().copied()).collect();
        let together = ottava_tensor::shape::broadcast("constant", &whole, values.shape());
        if together.as_deref().ok() != Some(&whole[..]) {
            return Err(format!("{name:?} of shape {:?} with values {shape:?}", values.shape()));
        }
        let owner = owner(node, None);
        let made = node.op_type.clone();
        let leaf = self.leaf(Kind::Buffer, (name, values), &made, &owner, "constant");
        self.push(&owner, op, vec![x, leaf], shape)
    }

    /// The window of a pooling and the shape of its output. Where `ceil_mode` asks for windows that
    /// begin inside and end outside, padding at the end makes room for them.
    fn pool(&mut self, node: &Node, x: NodeId) -> Check<(Window, Vec<usize>)> {
        let image = self.image(x)?;
        let kernel: [usize; 2] = node.sizes("kernel_shape", 0)?;
        let mut window = Window::new(node, kernel, image)?;
        if window.dilation != [1, 1] {
            return Err(format!("dilation {:?}", window.dilation));
        }
        if node.int("ceil_mode", 0) != 0 {
            for axis in 0..2 {
                let size = image[axis + 1] + window.padding[axis] + window.padding[axis + 2];
                let (kernel, stride) = (kernel[axis], window.stride[axis]);
                let mut steps = size.saturating_sub(kernel).div_ceil(stride);
                // A window must not begin in the padding at the end.
                if steps * stride >= image[axis + 1] + window.padding[axis] {
                    steps -= 1;
                }
                window.padding[axis + 2] += (steps * stride + kernel).saturating_sub(size);
            }
        }
        let [c, h, w] = image;
        let Window { kernel, stride, padding, .. } = window;
        let geometry = PoolGeometry::new([1, c, h, w], kernel, stride, padding)
            .map_err(|error| error.to_string())?;
        Ok((window, geometry.output_shape()[1..].to_vec()))
    }

    pub(super) fn max_pool(&mut self, node: &Node) -> Check<NodeId> {
        if node.output.get(1).is_some_and(|name| !name.is_empty()) {
            return Err("the places of the maxima are asked for".into());
        }
        let x = self.activation(node, 0)?;
        let (Window { kernel, stride, padding, .. }, shape) = self.pool(node, x)?;
        self.push(&owner(node, None), MaxPool2d { kernel, stride, padding }, vec![x], shape)
    }

    pub(super) fn average_pool(&mut self, node: &Node) -> Check<NodeId> {
        let x = self.activation(node, 0)?;
        let count_include_pad = node.int("count_include_pad", 0) != 0;
        if count_include_pad && node.int("ceil_mode", 0) != 0 {
            return Err("ceil_mode with count_include_pad".into());
        }
        let (Window { kernel, stride, padding, .. }, shape) = self.pool(node, x)?;
        let op = AvgPool2d { kernel, stride, padding, count_include_pad };
        self.push(&owner(node, None), op, vec![x], shape)
    }

    /// The mean of each image; `keep` leaves its two axes of size one.
    pub(super) fn global_average(&mut self, node: &Node, keep: bool) -> Check<NodeId> {
        let x = self.activation(node, 0)?;
        let [channels, ..] = self.image(x)?;
        let name = owner(node, None);
        let mean = self.push(&name, GlobalAvgPool, vec![x], vec![channels, 1, 1])?;
        if keep { Ok(mean) } else { self.flattened(&name, mean) }
    }

    pub(super) fn reduce_mean(&mut self, node: &Node) -> Check<NodeId> {
        let axes = match self.constant(node, 1).and_then(Constant::ints) {
            Some(axes) => axes.to_vec(),
            None => node.ints("axes").unwrap_or_default().to_vec(),
        };
        let mut axes: Vec<i64> =
            axes.iter().map(|&a| if a < 0 { a.saturating_add(4) } else { a }).collect();
        axes.sort_unstable();
        if axes != [2, 3] {
            return Err(format!("axes {axes:?}; only the mean over an image (2, 3) is supported"));
        }
        self.global_average(node, node.int("keepdims", 1) != 0)
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

fn transpose(weight: &Tensor<f32>) -> Check<Tensor<f32>> {
    if weight.rank() != 2 {
        return Err(format!("a weight of shape {:?}; a matrix was expected", weight.shape()));
    }
    let view = weight.transpose(0, 1).map_err(|error| error.to_string())?;
    Ok(view.contiguous())
}
