use std::collections::HashMap;

use ottava_autograd::ops::{
    ActivationQuant, LayerKind, QuantAdd, QuantAvgPool, QuantConcat, QuantLayer, Quantize,
};
use ottava_autograd::{Error, Graph, GraphNode, Leaf, Mode, NodeId, NodeKind, Op, Result, Tape};
use ottava_quant::{QParams, WeightSpec};
use ottava_tensor::Tensor;

use super::config::{QConfig, QConfigMap};
use super::float::{WEIGHTS_ALONE, left_in_float, no_integer_form};
use super::fuse::{Chain, activation_of, fuse};

/// A graph made quantization-aware.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The graph: quantized operators, observers, and whatever stayed in float. It shares the
    /// parameters of the graph it came from.
    pub graph: Graph,
    /// What stayed in float, and why.
    pub float: Vec<FloatNode>,
}

/// An operator that has no integer form here, or was told to stay in float. It runs between a
/// dequantize and a quantize.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FloatNode {
    /// The node's name.
    pub name: String,
    /// The operator.
    pub op: &'static str,
    /// Why.
    pub reason: String,
}

/// Makes a traced graph quantization-aware: fuses conv + BatchNorm + activation, linear + activation and
/// add + activation (ReLU, ReLU6, clips) into integer operators, and puts an observer and a rounding at
/// every point where the integer network rounds: the input, each layer, each residual sum, each average,
/// each concatenation.
///
/// What only moves values (max-pooling, slicing, padding, flattening, an activation of its own) passes codes
/// through on their grid. A layer whose weights have levels without integer codes computes in float, with
/// rounded weights. Anything else stays in float. Both are listed.
///
/// # Errors
/// [`Error::Op`] if a rule of `config` matches no layer; [`Error::Trace`] if the graph is quantized already;
/// [`Error::Node`] naming a layer that cannot be quantized as `config` says, why, and what to do.
pub fn prepare(graph: &Graph, config: &QConfigMap) -> Result<Prepared> {
    let chains = fuse(graph, config.fuses_relu());
    if let Some(unknown) = config.unknown_operators().first() {
        let known = QConfigMap::OPERATORS.join(", ");
        let reason = format!("a rule is for the operator `{unknown}`; there are {known}");
        return Err(Error::Op { op: "prepare", reason });
    }
    let names: Vec<&str> = chains.iter().map(|c| graph.nodes()[c.head].name.as_str()).collect();
    if let Some(pattern) = config.unmatched(&names).first() {
        let reason = format!("no layer matches `{pattern}`; the layers are {}", names.join(", "));
        return Err(Error::Op { op: "prepare", reason });
    }
    let shapes = shapes(graph)?;
    let mut builder = Builder {
        graph,
        configs: configs(graph, &chains, config)?,
        shapes,
        nodes: Vec::new(),
        place: HashMap::new(),
        codes: HashMap::new(),
        quantized: HashMap::new(),
        float: Vec::new(),
    };
    let tails: HashMap<NodeId, &Chain> = chains.iter().map(|chain| (chain.tail(), chain)).collect();
    let fused: HashMap<NodeId, &Chain> = chains
        .iter()
        .flat_map(|chain| {
            [Some(chain.head), chain.norm, chain.activation].map(|id| id.map(|id| (id, chain)))
        })
        .flatten()
        .collect();
    for (id, node) in graph.nodes().iter().enumerate() {
        // A fused operator stands where its last node stood: all its parameters come before.
        match (&node.kind, tails.get(&id)) {
            (NodeKind::Op(..), Some(chain)) => builder.chain(chain)?,
            (NodeKind::Op(..), None) if fused.contains_key(&id) => {}
            (NodeKind::Op(op, inputs), None) => builder.other(id, op, inputs)?,
            (NodeKind::Input(_) | NodeKind::Leaf(_), _) => {
                builder.push(id, node.clone(), false);
            }
        }
    }
    let output = builder.place[&graph.output()];
    Ok(Prepared { graph: Graph::new(builder.nodes, output)?, float: builder.float })
}

/// The shape of every operator's result for one image.
fn shapes(graph: &Graph) -> Result<HashMap<String, Vec<usize>>> {
    let shape: Vec<usize> = std::iter::once(1).chain(graph.input_shape().iter().copied()).collect();
    let tape = Tape::no_grad(Mode::EVAL);
    let mut shapes = HashMap::from([(graph.nodes()[graph.input()].name.clone(), shape.clone())]);
    graph.run_with(tape.input(Tensor::zeros(&shape)), |node, var| {
        shapes.insert(node.name.clone(), var.shape());
    })?;
    Ok(shapes)
}

/// How a chain is quantized: `None` to leave it in float; and what it reads, if that is not codes yet.
type Layer = Option<(QConfig, ActivationQuant)>;

/// How every chain is quantized, by its head.
fn configs(graph: &Graph, chains: &[Chain], map: &QConfigMap) -> Result<HashMap<NodeId, Layer>> {
    let mut configs = configs_by_rule(graph, chains, map)?;
    for chain in chains {
        let name = &graph.nodes()[chain.head].name;
        if let (Some(weight), Some(Some((config, _)))) =
            (map.weight(name), configs.get_mut(&chain.head))
        {
            config.weight = weight;
            check(config, name)?;
        }
    }
    Ok(configs)
}

/// The same but for layers whose weights are named alone.
fn configs_by_rule(
    graph: &Graph,
    chains: &[Chain],
    map: &QConfigMap,
) -> Result<HashMap<NodeId, Layer>> {
    let op_name = |id: NodeId| graph.nodes()[id].op().map_or("input", Op::name);
    let mut configs = HashMap::new();
    for chain in chains {
        let name = &graph.nodes()[chain.head].name;
        let config = map.get(name, op_name(chain.head)).copied();
        if let Some(config) = &config {
            check(config, name)?;
        }
        configs.insert(chain.head, config.map(|config| (config, config.activation)));
    }
    let weighted: Vec<NodeId> = chains
        .iter()
        .map(|chain| chain.head)
        .filter(|&head| matches!(op_name(head), "conv2d" | "linear"))
        .collect();
    let (Some(&first), Some(&last)) = (weighted.first(), weighted.last()) else {
        return Ok(configs);
    };
    let ends = |id: NodeId| map.of_first_last(&graph.nodes()[id].name, op_name(id));
    for id in [first, last] {
        if let Some(end) = ends(id) {
            check(&end, &graph.nodes()[id].name)?;
        }
    }
    if let (Some(end), Some(Some((config, input)))) = (ends(first), configs.get_mut(&first)) {
        (config.weight, config.learn_scales, *input) =
            (end.weight, end.learn_scales, end.activation);
    }
    if let (Some(end), Some(Some((config, input)))) = (ends(last), configs.get_mut(&last)) {
        // What the last layer reads is rounded in front of it if it is float, and else where it comes
        // from.
        (*config, *input) = (end, end.activation);
        let tails: HashMap<NodeId, NodeId> = chains.iter().map(|c| (c.tail(), c.head)).collect();
        let mut from = graph.nodes()[last].inputs()[0];
        while !tails.contains_key(&from) && graph.nodes()[from].op().is_some_and(Op::keeps_grid) {
            from = graph.nodes()[from].inputs()[0];
        }
        let source = tails.get(&from).and_then(|head| configs.get_mut(head));
        if let Some(Some((config, _))) = source {
            config.activation = end.activation;
        }
    }
    Ok(configs)
}

/// Refuses what no layer can be quantized with.
fn check(config: &QConfig, name: &str) -> Result<()> {
    match config.refusal() {
        None => Ok(()),
        Some(reason) => Err(Error::Op { op: "prepare", reason }.at(name)),
    }
}

struct Builder<'a> {
    graph: &'a Graph,
    /// What each chain's head gets.
    configs: HashMap<NodeId, Layer>,
    shapes: HashMap<String, Vec<usize>>,
    nodes: Vec<GraphNode>,
    /// Old node → new node.
    place: HashMap<NodeId, NodeId>,
    /// Whether a new node's value is codes.
    codes: HashMap<NodeId, bool>,
    /// New float node → the quantize behind it.
    quantized: HashMap<NodeId, NodeId>,
    float: Vec<FloatNode>,
}

impl Builder<'_> {
    fn push(&mut self, old: NodeId, node: GraphNode, codes: bool) {
        let id = self.add(node, codes);
        self.place.insert(old, id);
    }

    fn add(&mut self, node: GraphNode, codes: bool) -> NodeId {
        self.nodes.push(node);
        self.codes.insert(self.nodes.len() - 1, codes);
        self.nodes.len() - 1
    }

    fn placed(&self, old: &[NodeId]) -> Vec<NodeId> {
        old.iter().map(|id| self.place[id]).collect()
    }

    /// The state of an observer, as a leaf.
    fn observer(&mut self, name: &str, quant: &ActivationQuant) -> NodeId {
        let leaf = quant.leaf();
        let name = format!("{name}.output_range");
        self.add(GraphNode { name, kind: NodeKind::Leaf(leaf) }, false)
    }

    /// The scales of a weight, one an output channel, as a parameter.
    fn scales(&mut self, name: &str, weight: NodeId, spec: WeightSpec) -> Result<NodeId> {
        let Some(leaf) = self.graph.nodes()[weight].leaf() else {
            let reason = format!("the weight of `{name}` is computed, not a parameter");
            return Err(Error::Trace { reason });
        };
        let grids = spec.grids(&leaf.get()).map_err(|error| Error::from(error).at(name))?;
        let scales: Vec<f32> = grids.iter().map(QParams::scale).collect();
        let leaf = Leaf::param(Tensor::new(&[scales.len()], scales)?);
        let name = format!("{name}.weight_scale");
        Ok(self.add(GraphNode { name, kind: NodeKind::Leaf(leaf) }, false))
    }

    /// The value of an old node as codes: its own, or those of a quantize behind it.
    fn as_codes(&mut self, old: NodeId, quant: ActivationQuant) -> NodeId {
        let id = self.place[&old];
        if self.codes[&id] {
            return id;
        }
        if let Some(&known) = self.quantized.get(&id) {
            return known;
        }
        let name = format!("{}.quantize", self.nodes[id].name);
        let state = self.observer(&name, &quant);
        let kind = NodeKind::Op(Quantize { output: quant }.into(), vec![id, state]);
        let quantize = self.add(GraphNode { name, kind }, true);
        self.quantized.insert(id, quantize);
        quantize
    }

    /// Replaces a chain by its integer operator, or keeps its nodes if it has to stay in float.
    fn chain(&mut self, chain: &Chain) -> Result<()> {
        let node = &self.graph.nodes()[chain.head];
        let NodeKind::Op(op, inputs) = &node.kind else { return Ok(()) };
        let shapes =
            inputs.iter().map(|&id| self.shapes.get(&self.graph.nodes()[id].name).cloned());
        if let Some(reason) = no_integer_form(op, &shapes.collect::<Vec<_>>()) {
            return self.keep(chain, reason);
        }
        let nodes = self.graph.nodes();
        let norm = chain.norm.map_or(&[][..], |id| nodes[id].inputs());
        if norm.iter().skip(1).any(|&id| nodes[id].leaf().is_none()) {
            return self
                .keep(chain, "what its BatchNorm scales and shifts by is computed, not a leaf");
        }
        let Some((config, input)) = self.configs[&chain.head] else {
            return self.keep(chain, left_in_float(op));
        };
        let activation =
            chain.activation.and_then(|id| self.graph.nodes()[id].op().and_then(activation_of));
        let (activation, quant) = (activation.unwrap_or_default(), config.activation);
        let (op, inputs): (Op, Vec<NodeId>) = match op {
            Op::Conv2d(_) | Op::Linear(_) => {
                let kind = match op {
                    Op::Conv2d(conv) => LayerKind::Conv(conv.attrs),
                    _ => LayerKind::Linear,
                };
                let QConfig { weight, learn_scales, folding, .. } = config;
                let integer = weight.levels.has_codes(weight.bits);
                let x =
                    if integer { self.as_codes(inputs[0], input) } else { self.place[&inputs[0]] };
                let mut placed = vec![x];
                placed.extend(self.placed(&inputs[1..]));
                let mut norm = None;
                if let Some(id) = chain.norm
                    && let NodeKind::Op(Op::BatchNorm2d(attrs), norm_inputs) =
                        &self.graph.nodes()[id].kind
                {
                    norm = Some(*attrs);
                    placed.extend(self.placed(&norm_inputs[1..]));
                }
                if learn_scales {
                    placed.push(self.scales(&node.name, inputs[1], weight)?);
                }
                let bias = inputs.len() > 2;
                let output = integer.then_some(quant);
                let layer = QuantLayer {
                    kind,
                    weight,
                    learn_scales,
                    bias,
                    norm,
                    folding,
                    activation,
                    output,
                };
                if !integer {
                    return self.weights_alone(chain, layer, placed);
                }
                (layer.into(), placed)
            }
            Op::Add(_) => {
                let placed = vec![self.as_codes(inputs[0], input), self.as_codes(inputs[1], input)];
                (QuantAdd { activation, output: quant }.into(), placed)
            }
            Op::GlobalAvgPool(_) => {
                let placed = vec![self.as_codes(inputs[0], input)];
                (QuantAvgPool { window: None, output: quant }.into(), placed)
            }
            Op::AvgPool2d(pool) => {
                let placed = vec![self.as_codes(inputs[0], input)];
                let window = Some((pool.kernel, pool.stride));
                (QuantAvgPool { window, output: quant }.into(), placed)
            }
            Op::Concat(concat) => {
                let placed = inputs.iter().map(|&id| self.as_codes(id, input)).collect();
                (QuantConcat { axis: concat.axis, output: quant }.into(), placed)
            }
            _ => unreachable!("no chain begins with it"),
        };
        let name = node.name.clone();
        let state = self.observer(&name, &quant);
        let inputs = inputs.into_iter().chain([state]).collect();
        self.push(chain.tail(), GraphNode { name, kind: NodeKind::Op(op, inputs) }, true);
        Ok(())
    }

    /// A layer with rounded weights that computes in float.
    fn weights_alone(
        &mut self,
        chain: &Chain,
        layer: QuantLayer,
        inputs: Vec<NodeId>,
    ) -> Result<()> {
        let node = &self.graph.nodes()[chain.head];
        let op = if layer.kind == LayerKind::Linear { "linear" } else { "conv2d" };
        self.float.push(FloatNode { name: node.name.clone(), op, reason: WEIGHTS_ALONE.into() });
        let kind = NodeKind::Op(layer.into(), inputs);
        self.push(chain.tail(), GraphNode { name: node.name.clone(), kind }, false);
        Ok(())
    }

    fn keep(&mut self, chain: &Chain, reason: &str) -> Result<()> {
        for id in [Some(chain.head), chain.norm, chain.activation].into_iter().flatten() {
            self.keep_one(id, reason);
        }
        Ok(())
    }

    fn keep_one(&mut self, id: NodeId, reason: &str) {
        let node = &self.graph.nodes()[id];
        let Some(op) = node.op() else { return };
        let (name, reason) = (node.name.clone(), reason.to_owned());
        self.float.push(FloatNode { name: name.clone(), op: op.name(), reason });
        let kind = NodeKind::Op(op.clone(), self.placed(node.inputs()));
        self.push(id, GraphNode { name, kind }, false);
    }

    /// An operator that is not fused.
    fn other(&mut self, id: NodeId, op: &Op, inputs: &[NodeId]) -> Result<()> {
        if op.keeps_grid() {
            let placed = self.placed(inputs);
            let codes = self.codes[&placed[0]];
            let name = self.graph.nodes()[id].name.clone();
            self.push(id, GraphNode { name, kind: NodeKind::Op(op.clone(), placed) }, codes);
            return Ok(());
        }
        match op {
            Op::Quantize(_)
            | Op::QuantLayer(_)
            | Op::QuantAdd(_)
            | Op::QuantAvgPool(_)
            | Op::QuantConcat(_)
            | Op::FakeQuant(_)
            | Op::LearnedFakeQuant(_) => {
                return Err(Error::Trace { reason: "the graph is quantized already".into() });
            }
            _ => {
                let reason = no_integer_form(op, &vec![None; inputs.len()]);
                self.keep_one(id, reason.unwrap_or_else(|| left_in_float(op)));
            }
        }
        Ok(())
    }
}
