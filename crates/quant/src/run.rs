use std::sync::atomic::{AtomicU64, Ordering};

use ottava_tensor::conv::int8::Algorithm;
use ottava_tensor::parallel::{self, Threads};
use ottava_tensor::{Level, Tensor};

use crate::codes;
use crate::instr::{Elements, ValueType};
use crate::kernels::{self, Images};
use crate::plan::{Front, Plan, Use};
use crate::step::Step;
use crate::workspace::{Memory, Workspace};
use crate::{Activation, Error, FloatOp, Instr, Node, Program, QTensor, Result, Tuning, ValueId};

/// How a [`Program`] is made ready to run. No choice changes a result.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The instruction set of the integer kernels.
    pub level: Level,
    /// Whether an addition behind a convolution is done on the convolution's sums, saving a pass. The
    /// convolution's own codes are then never in memory, and not traced.
    pub fuse: bool,
    /// How convolutions are computed. `Auto` follows the program's [`Tuning`] if it has one for this
    /// machine, else a static rule.
    pub algorithm: Algorithm,
}

impl Options {
    /// The default: as fast as this machine can. Weights are a byte each in memory here too, but for
    /// those of depthwise convolutions and small groups; Winograd
    /// convolutions transform them while they run, in up to a megabyte of workspace for each thread.
    pub fn fast() -> Self {
        Self::default()
    }

    /// As little memory as possible: no Winograd, and so the least workspace. Depthwise convolutions keep
    /// their kernel, which packs them smaller.
    pub fn small() -> Self {
        Self { algorithm: Algorithm::Direct, ..Self::default() }
    }
}

impl Default for Options {
    /// The level of the environment, fused, algorithms chosen by shape.
    fn default() -> Self {
        Self { level: Level::current(), fuse: true, algorithm: Algorithm::Auto }
    }
}

/// A [`Program`] ready to run: weights packed for an instruction set, steps fused.
///
/// Running needs `&self` only; each thread brings a [`Workspace`] of its own. It uses the threads of the
/// rayon pool that the caller is in, unless told others: [`on`](Self::on).
pub struct Engine {
    /// Tells workspaces whose plan they hold.
    id: u64,
    level: Level,
    threads: Threads,
    steps: Vec<Step>,
    uses: Vec<Use>,
    values: Vec<ValueType>,
    output: usize,
    /// How many images run at a time.
    part: usize,
    /// The steps that do so for fewer.
    front: Front,
}

/// Bytes that the images running at a time should stay below: enough of them to read weights once for
/// several and to keep many threads busy, and no more memory for a batch of thousands than for this.
const PART: usize = 1 << 23;

/// Bytes that a step of the front reads and writes at a time: a part of an L2 cache.
const FRONT: usize = 1 << 20;

/// What a node made, as [`Engine::run_traced`] shows it.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Codes and their grid.
    Codes(QTensor),
    /// Floats.
    Float(Tensor<f32>),
}

impl Value {
    /// The codes; `None` for floats.
    pub fn codes(&self) -> Option<&QTensor> {
        match self {
            Self::Codes(codes) => Some(codes),
            Self::Float(_) => None,
        }
    }
}

impl Program {
    /// Runs the program once, nothing fused, showing `see` every node and what it made; the result
    /// as [`Engine::run`] has it. For a comparison with another evaluation of the same network.
    ///
    /// # Errors
    /// As [`Engine::with_options`] and [`Engine::run`].
    pub fn run_traced(
        &self,
        input: &Tensor<f32>,
        mut see: impl FnMut(&Node, &Value),
    ) -> Result<Tensor<f32>> {
        let engine = Engine::with_options(self, Options { fuse: false, ..Options::default() })?;
        engine.run_traced(input, &mut Workspace::new(), |node, value| {
            see(&self.nodes()[node], value);
        })
    }
}

/// Bytes that packed weights and the values of one image may take: far above any network's. Without a
/// limit, a small file could ask for any amount of memory.
const MAX_WORKSPACE: u64 = 1 << 32;

impl Engine {
    /// Packs a program for this machine's best instruction set.
    ///
    /// # Errors
    /// [`Error::Node`] if a layer is beyond what the kernels can do exactly; [`Error::Workspace`] if its
    /// packed weights and one image need absurdly much memory.
    pub fn new(program: &Program) -> Result<Self> {
        Self::with_options(program, Options::default())
    }

    /// Packs a program.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_options(program: &Program, options: Options) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let fused = if options.fuse { fusible(program) } else { vec![] };
        let auto = options.algorithm == Algorithm::Auto;
        let tuning = auto.then(|| Tuning::of(program, &options)).flatten();
        let options_of = |index: usize| {
            let name = &program.nodes()[index].name;
            let tuned = tuning.as_ref().and_then(|tuning| tuning.algorithm(name));
            Options { algorithm: tuned.unwrap_or(options.algorithm), ..options }
        };
        // A fused layer runs where the last of its nodes stands: all it reads is there by then.
        let mut absorbed = vec![false; program.nodes().len()];
        fused.iter().flatten().for_each(|&layer| absorbed[layer] = true);
        let nodes: Vec<usize> = (0..absorbed.len()).filter(|&index| !absorbed[index]).collect();
        let packed = AtomicU64::new(0);
        let check = |bytes: u64| match bytes > MAX_WORKSPACE {
            true => Err(Error::Workspace { bytes: bytes as usize, most: MAX_WORKSPACE }),
            false => Ok(()),
        };
        let steps = parallel::map(nodes.len(), |i| {
            check(packed.load(Ordering::Relaxed))?;
            let mut chain = vec![nodes[i]];
            while let Some(before) = fused.get(chain[chain.len() - 1]).copied().flatten() {
                chain.push(before);
            }
            let (behind, layer) = (&chain[..chain.len() - 1], chain[chain.len() - 1]);
            let step = Step::new(program, layer, &options_of(layer))?;
            packed.fetch_add(step.packed_bytes() as u64, Ordering::Relaxed);
            Ok(behind.iter().rev().fold(step, |step, &node| step.then(program, node)))
        });
        let steps = steps.into_iter().collect::<Result<Vec<Step>>>()?;
        // What is quantized at once is read where the caller has it.
        let computes_on_input = program.nodes().iter().any(|node| {
            node.inputs.contains(&ValueId::INPUT) && !matches!(node.instr, Instr::Quantize(_))
        });
        let input = computes_on_input.then(|| Step::input(program));
        let steps: Vec<Step> = input.into_iter().chain(steps).collect();
        let uses = steps
            .iter()
            .map(|step| Use {
                inputs: step.inputs.clone(),
                output: step.output,
                sharing: step.sharing(),
            })
            .collect();
        let nodes = program.nodes().len();
        let mut engine = Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            level: options.level,
            threads: Threads::Current,
            steps,
            uses,
            values: (0..=nodes).map(|value| program.value(ValueId(value)).clone()).collect(),
            output: program.output().0,
            part: usize::MAX,
            front: Front::NONE,
        };
        // One image must find a place.
        let bytes = engine.workspace_bytes(1)?;
        check((bytes as u64).saturating_add(packed.into_inner()))?;
        let joins = |node: &Node| matches!(&node.instr, Instr::Float(op) if op.joins_images());
        if !program.nodes().iter().any(joins) {
            // By shapes and kernels, and by what each thread needs; no result depends on it.
            engine.front = engine.front();
            // What an image more takes.
            const MANY: usize = 64;
            let each = engine.workspace_bytes(MANY).map_or(usize::MAX, |bytes| bytes / MANY);
            engine.part = (PART / each.max(1)).max(1);
        }
        Ok(engine)
    }

    /// Runs on these threads from now on: a pool of the caller's, or the calling thread alone, which then
    /// never meets rayon. Packing happens before this; [`Threads::run`] chooses for it too:
    ///
    /// ```no_run
    /// use ottava_quant::{Engine, Program, Threads};
    ///
    /// let program = Program::load("model.ottava")?;
    /// let engine = Threads::One.run(|| Engine::new(&program))?.on(Threads::One);
    /// # Ok::<(), ottava_quant::Error>(())
    /// ```
    pub fn on(mut self, threads: Threads) -> Self {
        self.threads = threads;
        self
    }

    /// The instruction set that its integer kernels were packed for.
    pub fn level(&self) -> Level {
        self.level
    }

    /// How the layer of the program's node at `index` is computed; `None` for a node without weights.
    pub fn algorithm(&self, index: usize) -> Option<Algorithm> {
        self.steps.iter().find(|step| step.node == Some(index)).and_then(Step::algorithm)
    }

    /// Bytes the packed weights of all layers take.
    pub fn packed_bytes(&self) -> usize {
        self.steps.iter().map(Step::packed_bytes).sum()
    }

    /// The shape of one input image.
    pub fn input_shape(&self) -> &[usize] {
        &self.values[0].shape
    }

    /// The shape of the result for one image.
    pub fn output_shape(&self) -> &[usize] {
        &self.values[self.output].shape
    }

    /// Bytes a workspace holds for a batch, weights not included.
    ///
    /// # Errors
    /// [`Error::Batch`] if they overflow.
    pub fn workspace_bytes(&self, batch: usize) -> Result<usize> {
        let part = batch.min(self.part);
        let arena = self.plan(part, self.front)?.arena;
        Ok(arena + self.threads.run(|| self.scratch_len(part, self.front)))
    }

    /// How many images run at a time.
    pub(crate) fn part(&self) -> usize {
        self.part
    }

    /// Runs the program on `f32` images `[n, c, h, w]` (or vectors `[n, k]`) in any layout; the
    /// result as `f32`, batch first.
    ///
    /// # Errors
    /// [`Error::Input`] if the shape is another than the program's, [`Error::Batch`] if there is no
    /// memory for a batch of that size.
    pub fn run(&self, input: &Tensor<f32>, workspace: &mut Workspace) -> Result<Tensor<f32>> {
        self.threads.run(|| self.run_parts(input, workspace, self.part, None))
    }

    /// [`run`](Self::run) into a slice, which allocates nothing after the first run on a batch size if the
    /// input has no gaps: on any number of threads, if the caller is one of the pool's. Operators in floats
    /// other than convolutions allocate their results.
    ///
    /// # Errors
    /// As [`run`](Self::run); [`ottava_tensor::Error::Length`] if `output` has another length.
    pub fn run_into(
        &self,
        input: &Tensor<f32>,
        output: &mut [f32],
        workspace: &mut Workspace,
    ) -> Result<()> {
        let batch = self.batch_of(input)?;
        if Some(output.len()) != self.result_len(batch) {
            let shape = self.batched(self.output, batch);
            return Err(ottava_tensor::Error::Length { shape, elements: output.len() }.into());
        }
        self.threads.run(|| self.execute(input, output, workspace, self.part, None))
    }

    /// [`run`](Self::run), showing `see` what each node of the program made, by the node's index. A
    /// convolution fused with its addition is not seen: prepare with `fuse: false` to see all. Always on
    /// the caller's own threads: `see` need not be fit to leave them.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_traced(
        &self,
        input: &Tensor<f32>,
        workspace: &mut Workspace,
        mut see: impl FnMut(usize, &Value),
    ) -> Result<Tensor<f32>> {
        // In one part: `see` is to get whole values.
        self.run_parts(input, workspace, usize::MAX, Some(&mut see))
    }

    fn run_parts(
        &self,
        input: &Tensor<f32>,
        workspace: &mut Workspace,
        part: usize,
        see: Option<See<'_>>,
    ) -> Result<Tensor<f32>> {
        let batch = self.batch_of(input)?;
        let mut output = vec![];
        self.result_len(batch)
            .and_then(|len| output.try_reserve_exact(len).ok().map(|()| output.resize(len, 0.0)))
            .ok_or(Error::Batch { batch })?;
        self.execute(input, &mut output, workspace, part, see)?;
        Ok(Tensor::new(&self.batched(self.output, batch), output)?)
    }

    /// The batch of an input of the right shape.
    fn batch_of(&self, input: &Tensor<f32>) -> Result<usize> {
        match input.shape() {
            [batch, image @ ..] if image == self.input_shape() => Ok(*batch),
            shape => {
                let expected = self.input_shape().to_vec();
                Err(Error::Input { expected, shape: shape.to_vec() })
            }
        }
    }

    fn result_len(&self, batch: usize) -> Option<usize> {
        self.output_shape().iter().product::<usize>().checked_mul(batch)
    }

    /// Runs at most `part` images at a time.
    fn execute(
        &self,
        input: &Tensor<f32>,
        output: &mut [f32],
        workspace: &mut Workspace,
        part: usize,
        mut see: Option<See<'_>>,
    ) -> Result<()> {
        let batch = self.batch_of(input)?;
        if batch == 0 {
            return Ok(());
        }
        let part = part.min(batch);
        // All images at once where somebody looks on, who is to get whole values.
        let front = if see.is_some() { Front::NONE } else { self.front };
        let Memory { plan, arena, scratch } = workspace.prepare(
            (self.id, part, front, parallel::threads()),
            || self.plan(part, front),
            || self.scratch_len(part, front),
        )?;
        let image: usize = self.input_shape().iter().product();
        let results = output.len() / batch;
        for start in (0..batch).step_by(part) {
            let count = part.min(batch - start);
            let gaps;
            let all = start * image..(start + count) * image;
            let images = match (input.as_slice(), input.as_nhwc()) {
                (Some(x), _) => Images::ChannelsFirst(&x[all]),
                (None, Some(x)) => Images::ChannelsLast(&x[all]),
                (None, None) => {
                    gaps = input.slice(0, start..start + count, 1)?.to_vec();
                    Images::ChannelsFirst(&gaps)
                }
            };
            let (first, rest) = self.steps.split_at(front.steps);
            for from in (0..count).step_by(front.images) {
                let some = from..count.min(from.saturating_add(front.images));
                let images = images.slice(some.start * image..some.end * image);
                for step in first {
                    step.run(self.level, images, some.clone(), plan, arena, scratch);
                }
            }
            for step in rest {
                step.run(self.level, images, 0..count, plan, arena, scratch);
                if let (Some(see), Some(node)) = (&mut see, step.output.checked_sub(1)) {
                    let bytes = &arena[plan.place(step.output, 0..count)];
                    see(node, &self.show(step.output, count, bytes));
                }
            }
            let bytes = &arena[plan.place(self.output, 0..count)];
            self.read(self.output, bytes, &mut output[start * results..(start + count) * results]);
        }
        Ok(())
    }

    fn plan(&self, batch: usize, front: Front) -> Result<Plan> {
        let bytes: Vec<usize> = self.values.iter().map(ValueType::bytes).collect();
        Plan::new(&self.uses, &bytes, self.output, batch, front)
    }

    fn scratch_len(&self, batch: usize, front: Front) -> usize {
        let (first, rest) = self.steps.split_at(front.steps);
        let first = first.iter().map(|step| step.scratch_len(batch.min(front.images)));
        let rest = rest.iter().map(|step| step.scratch_len(batch));
        first.chain(rest).max().unwrap_or(0)
    }

    /// The steps at the program's beginning that move more values of an image than they have weights:
    /// better a few images through all of them than all images through each. Where little is left of an
    /// image they end.
    fn front(&self) -> Front {
        let bytes = |value: usize| self.values[value].bytes();
        let moved =
            |step: &Step| bytes(step.output) + step.inputs.iter().map(|&x| bytes(x)).sum::<usize>();
        let many = self.steps.iter().take_while(|step| moved(step) >= step.packed_bytes()).count();
        let mut last_read = vec![0; self.values.len()];
        for (index, step) in self.steps.iter().enumerate() {
            step.inputs.iter().for_each(|&value| last_read[value] = index);
        }
        last_read[self.output] = usize::MAX;
        // What is left of an image behind each of these steps: made by then, and read later.
        let mut alive = vec![false; self.values.len()];
        let mut left = 0;
        let kept = self.steps[..many].iter().enumerate().map(|(index, step)| {
            alive[step.output] = last_read[step.output] > index;
            left += if alive[step.output] { bytes(step.output) } else { 0 };
            for &value in &step.inputs {
                if last_read[value] == index && std::mem::take(&mut alive[value]) {
                    left -= bytes(value);
                }
            }
            left
        });
        let kept: Vec<usize> = kept.collect();
        let steps = (1..=many).rev().min_by_key(|&steps| kept[steps - 1]).unwrap_or(0);
        let largest = self.steps[..steps].iter().map(moved).max().unwrap_or(0);
        Front { steps, images: (FRONT / largest.max(1)).max(1) }
    }

    fn batched(&self, value: usize, batch: usize) -> Vec<usize> {
        [&[batch], self.values[value].shape.as_slice()].concat()
    }

    /// A value's elements as `f32`, in logical order.
    fn read(&self, value: usize, bytes: &[u8], output: &mut [f32]) {
        let shape = self.values[value].image();
        match self.values[value].elements {
            Elements::Codes(grid) => codes::dequantize(self.level, bytes, shape, grid, output),
            Elements::Float => {
                kernels::to_logical_order(bytemuck::cast_slice(bytes), shape, output);
            }
        }
    }

    fn show(&self, value: usize, batch: usize, bytes: &[u8]) -> Value {
        let ValueType { shape, elements } = &self.values[value];
        match elements {
            Elements::Codes(grid) => {
                Value::Codes(QTensor::new(kernels::tensor(bytes, batch, shape), *grid))
            }
            Elements::Float => Value::Float(kernels::tensor(bytes, batch, shape)),
        }
    }
}

/// What is shown each node's index and value.
type See<'a> = &'a mut dyn FnMut(usize, &Value);

/// For each node that completes a layer's result nobody else reads, as one step with it, the node that it
/// completes: an addition a layer; in floats, an addition a convolution, and a ReLU either.
///
/// Of codes only a layer that is the *first* operand is fused: in `f32`, `(a + fixed) + b` rounds
/// differently from `(b + fixed) + a`.
pub(crate) fn fusible(program: &Program) -> Vec<Option<usize>> {
    let nodes = program.nodes();
    let mut readers = vec![0; nodes.len() + 1];
    nodes.iter().flat_map(|node| &node.inputs).for_each(|input| readers[input.0] += 1);
    readers[program.output().0] += 1;
    let mut fused: Vec<Option<usize>> = Vec::with_capacity(nodes.len());
    for (index, node) in nodes.iter().enumerate() {
        let shape = |id: ValueId| &program.value(id).shape;
        let is_conv = |id: usize| matches!(nodes[id].instr, Instr::Float(FloatOp::Conv { .. }));
        // The node of a value that nobody else reads.
        let own = |id: ValueId| id.node().filter(|_| readers[id.0] == 1);
        let before = match &node.instr {
            Instr::Add { .. } => {
                own(node.inputs[0]).filter(|&id| nodes[id].instr.layer().is_some())
            }
            Instr::Float(FloatOp::Add(None)) => {
                let whole = |id: &ValueId| shape(*id) == shape(ValueId::of_node(index));
                let operands =
                    node.inputs.iter().copied().filter(|_| node.inputs.iter().all(whole));
                operands.filter_map(own).find(|&id| is_conv(id))
            }
            Instr::Clip(Activation::RELU) => {
                own(node.inputs[0]).filter(|&id| is_conv(id) || is_sum_of_conv(id, nodes, &fused))
            }
            _ => None,
        };
        fused.push(before);
    }
    fused
}

/// Whether a node adds to a convolution in floats, in one step with it.
fn is_sum_of_conv(id: usize, nodes: &[Node], fused: &[Option<usize>]) -> bool {
    matches!(nodes[id].instr, Instr::Float(FloatOp::Add(None))) && fused[id].is_some()
}
