//! Model files: ours, float or integer, and other people's weights and networks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ottava::autograd::{Graph, Leaf, Result as TapeResult, Var};
use ottava::data::Preprocess;
use ottava::interop::{self, OnnxOptions, StateDict};
use ottava::nn::models::{Architecture, ModelConfig};
use ottava::nn::qat::{convert, fold_norms};
use ottava::nn::{self, Module, Network};
use ottava::quant::{Container, Program};
use ottava::tensor::Tensor;

use crate::classifier::{Classifier, Deployed, Evaluating};
use crate::setup::{parsed, usage};

/// Pixels along a side of an image that a network is tried with.
const MAX_SIZE: usize = 4096;

/// A network from a file.
pub enum Model {
    Float(FloatModel),
    Integer(Program),
}

impl Model {
    /// How many classes it tells apart.
    pub fn class_count(&self) -> usize {
        match self {
            Self::Float(model) => model.class_count,
            Self::Integer(program) => program.output_shape().iter().product(),
        }
    }

    /// What happens to pixels before it sees them, if its file says so.
    pub fn preprocess(&self) -> Result<Option<Preprocess>> {
        match self {
            Self::Float(model) => Ok(model.preprocess.clone()),
            Self::Integer(program) => Ok(Preprocess::from_metadata(program.metadata())?),
        }
    }

    /// Its classes by name, if its file says them.
    pub fn classes(&self) -> Vec<String> {
        match self {
            Self::Float(model) => model.classes.clone(),
            Self::Integer(program) => class_names(program.metadata()),
        }
    }

    /// The shape of an image, if it takes no other.
    pub fn only_input(&self) -> Option<&[usize]> {
        match self {
            Self::Float(model) => model.only_input(),
            Self::Integer(program) => Some(program.input_shape()),
        }
    }

    /// It, ready to classify images.
    pub fn classifier(&self) -> Result<Box<dyn Classifier + '_>> {
        Ok(match self {
            Self::Float(model) => Box::new(Evaluating(&model.network)),
            Self::Integer(program) => Box::new(Deployed::new(program)?),
        })
    }

    /// The shape of an image: the file's, or of a size that somebody wrote.
    ///
    /// # Errors
    /// A size that is absurd, or that the network does not take.
    pub fn sized(&self, size: Option<usize>) -> Result<Vec<usize>> {
        match self {
            Self::Float(model) => Ok(model.sized(size)?.to_vec()),
            Self::Integer(program) => {
                only_size(program.input_shape(), size)?;
                Ok(program.input_shape().to_vec())
            }
        }
    }
}

/// Refuses a size of images that a network does not take.
fn only_size(shape: &[usize], size: Option<usize>) -> Result<()> {
    match (size, shape) {
        (Some(size), &[_, height, width]) if [height, width] != [size; 2] => {
            bail!("--size {size}: the network takes images of {height}×{width} pixels alone")
        }
        _ => Ok(()),
    }
}

/// A float network and what its file says of it.
pub struct FloatModel {
    pub network: FloatNetwork,
    /// How many classes it tells apart.
    pub class_count: usize,
    pub in_channels: usize,
    /// The shape of an image, if the file says it.
    pub input: Option<[usize; 3]>,
    pub classes: Vec<String>,
    pub preprocess: Option<Preprocess>,
}

/// A network of ours by name, or one from an ONNX file.
pub enum FloatNetwork {
    Ours(Architecture, Box<dyn Module>),
    Onnx(Graph),
}

impl Network for FloatNetwork {
    fn run<'t>(&self, x: Var<'t>) -> TapeResult<Var<'t>> {
        match self {
            Self::Ours(_, module) => module.forward(x),
            Self::Onnx(graph) => graph.run(x),
        }
    }

    fn leaves(&self) -> Vec<(String, Leaf)> {
        match self {
            Self::Ours(_, module) => module.leaves(),
            Self::Onnx(graph) => graph.leaves(),
        }
    }
}

/// The architecture's name in files whose network is an ONNX graph, and the tensor that holds it.
const ONNX: &str = "onnx";

impl FloatModel {
    /// The shape of an image, if the network takes no other.
    pub fn only_input(&self) -> Option<&[usize]> {
        match &self.network {
            FloatNetwork::Ours(..) => None,
            FloatNetwork::Onnx(graph) => Some(graph.input_shape()),
        }
    }

    /// A network with the weights of a seed.
    pub fn new(
        architecture: Architecture,
        config: ModelConfig,
        input: [usize; 3],
        classes: &[String],
        preprocess: &Preprocess,
    ) -> Result<Self> {
        Ok(Self {
            network: FloatNetwork::Ours(architecture, architecture.build(&config)?),
            class_count: config.classes,
            in_channels: config.in_channels,
            input: Some(input),
            classes: classes.to_vec(),
            preprocess: Some(preprocess.clone()),
        })
    }

    /// The shape of an image: the file's, or the size the architecture was designed for.
    pub fn input_shape(&self, size: Option<usize>) -> [usize; 3] {
        match (size, self.input, &self.network) {
            (_, Some(shape), FloatNetwork::Onnx(_)) => shape,
            (Some(size), ..) => [self.in_channels, size, size],
            (None, Some(shape), _) => shape,
            (None, None, FloatNetwork::Ours(architecture, _)) => {
                let size = architecture.input_size();
                [self.in_channels, size, size]
            }
            (None, None, FloatNetwork::Onnx(graph)) => {
                let [c, h, w] = graph.input_shape() else { return [self.in_channels, 1, 1] };
                [*c, *h, *w]
            }
        }
    }

    /// The network as a program in floats, its BatchNorms folded, for images of this shape: what is deployed
    /// if nothing is quantized.
    pub fn program(&self, shape: [usize; 3]) -> Result<Program> {
        Ok(convert(&fold_norms(&self.trace(shape)?)?)?)
    }

    /// [`input_shape`](Self::input_shape) for a size that somebody wrote.
    pub fn sized(&self, size: Option<usize>) -> Result<[usize; 3]> {
        if let Some(size) = size.filter(|size| !(1..=MAX_SIZE).contains(size)) {
            usage!("--size {size}: use 1 to {MAX_SIZE} pixels");
        }
        let shape = self.input_shape(size);
        if matches!(self.network, FloatNetwork::Onnx(_)) {
            only_size(&shape, size)?;
        }
        Ok(shape)
    }

    /// The network as a graph for images of a shape.
    pub fn trace(&self, [c, h, w]: [usize; 3]) -> Result<Graph> {
        match &self.network {
            FloatNetwork::Ours(_, module) => {
                Ok(nn::trace(&**module, &Tensor::zeros(&[1, c, h, w]))?)
            }
            FloatNetwork::Onnx(graph) => Ok(graph.clone()),
        }
    }

    /// Names and values for a file that holds this network, float or quantized.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        let architecture = match &self.network {
            FloatNetwork::Ours(architecture, _) => architecture.name(),
            FloatNetwork::Onnx(_) => ONNX,
        };
        let mut metadata = BTreeMap::from([
            ("kind".to_owned(), "float".to_owned()),
            ("architecture".to_owned(), architecture.to_owned()),
            ("classes".to_owned(), self.class_count.to_string()),
            ("in_channels".to_owned(), self.in_channels.to_string()),
        ]);
        if let Some([c, h, w]) = self.input {
            metadata.insert("input".into(), format!("{c}x{h}x{w}"));
        }
        if !self.classes.is_empty() {
            metadata.insert("class_names".into(), self.classes.join("\n"));
        }
        metadata.extend(self.preprocess.iter().flat_map(Preprocess::to_metadata));
        metadata
    }

    /// The network for a file: its parameters by name, or its graph as ONNX.
    pub fn to_container(&self) -> Result<Container> {
        let mut container = Container::default();
        container.metadata_mut().extend(self.metadata());
        match &self.network {
            FloatNetwork::Ours(_, module) => put(&mut container, module.state_dict())?,
            FloatNetwork::Onnx(graph) => {
                let bytes =
                    interop::graph_to_onnx(graph, &BTreeMap::new(), &OnnxOptions::default())?;
                container.put(ONNX, &Tensor::new(&[bytes.len()], bytes)?)?;
            }
        }
        Ok(container)
    }

    /// Writes the network as `.ottava`.
    pub fn save(&self, path: &Path) -> Result<()> {
        Ok(self.to_container()?.save(path)?)
    }

    /// The network of a file that [`to_container`](Self::to_container) filled; `shown` is its path.
    pub fn from_container(shown: &str, container: &Container) -> Result<Self> {
        let metadata = container.metadata();
        let text = |key: &str| {
            let missing = || format!("{shown} does not say its {key}; was it written by `ottava`?");
            metadata.get(key).with_context(missing)
        };
        let here = || shown.to_owned();
        let number = |key: &str| -> Result<usize> {
            text(key)?.parse().with_context(|| format!("{shown}: {key} is no number"))
        };
        let (class_count, in_channels) = (number("classes")?, number("in_channels")?);
        let network = if text("architecture")? == ONNX {
            let bytes: Tensor<u8> = container.get(ONNX).with_context(here)?;
            FloatNetwork::Onnx(interop::onnx_from_bytes(shown, &bytes.to_vec())?.graph)
        } else {
            let config =
                ModelConfig { classes: class_count, in_channels, ..ModelConfig::default() };
            let tensors =
                container.tensors().keys().map(|name| Ok((name.clone(), container.get(name)?)));
            let tensors: Result<Vec<_>> = tensors.collect();
            let state: StateDict = tensors.with_context(here)?.into_iter().collect();
            let architecture = text("architecture")?.parse().with_context(here)?;
            ours(shown, architecture, config, &state)?
        };
        let sizes = |text: &String| -> Result<[usize; 3]> {
            let sizes: Option<Vec<usize>> = text.split('x').map(|size| size.parse().ok()).collect();
            let shape = sizes.and_then(|sizes| <[usize; 3]>::try_from(sizes).ok());
            let possible = |&[c, h, w]: &[usize; 3]| {
                c == in_channels && [h, w].iter().all(|size| (1..=MAX_SIZE).contains(size))
            };
            shape.filter(possible).with_context(|| {
                format!(
                    "{shown}: its input, {text:?}, is no {in_channels}xHxW of at most {MAX_SIZE} pixels a side"
                )
            })
        };
        Ok(Self {
            network,
            class_count,
            in_channels,
            input: metadata.get("input").map(sizes).transpose()?,
            classes: class_names(metadata),
            preprocess: Preprocess::from_metadata(metadata).with_context(here)?,
        })
    }
}

/// The classes by name, if a file's metadata say them.
fn class_names(metadata: &BTreeMap<String, String>) -> Vec<String> {
    let names = metadata.get("class_names");
    names.map_or_else(Vec::new, |text| text.lines().map(str::to_owned).collect())
}

/// Adds named tensors to a file.
pub fn put(container: &mut Container, state: Vec<(String, Tensor<f32>)>) -> Result<()> {
    for (name, tensor) in state {
        container.put(name, &tensor)?;
    }
    Ok(())
}

/// Whether a file holds weights alone, and no network.
pub fn is_state_dict(path: &Path) -> bool {
    !path.is_dir() && path.extension().is_none_or(|kind| kind != "ottava" && kind != "onnx")
}

/// The model of a file, or of a run directory: its `int8.ottava`, else its `best.ottava`. `named` is
/// the architecture of weights that do not say it.
///
/// # Errors
/// What cannot be read; a name that the file contradicts.
pub fn load(path: &Path, named: Option<&str>) -> Result<Model> {
    let named: Option<Architecture> = named.map(parsed).transpose()?;
    let path = in_run(path, &["int8.ottava", "best.ottava"])?;
    let shown = path.display().to_string();
    let kind = std::fs::metadata(&path).with_context(|| format!("cannot read {shown}"))?;
    if !kind.is_file() {
        bail!("{shown} is no file; name a model file or a run directory");
    }
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("ottava") => {
            let container = read_container(&path)?;
            if let (Some(named), Some(has)) = (named, container.metadata().get("architecture"))
                && named.name() != has
            {
                bail!(
                    "{shown}: --model {named} is another network than its own, {has}; leave it out"
                );
            }
            match container.metadata().get("kind").map(String::as_str) {
                Some("float") => Ok(Model::Float(FloatModel::from_container(&shown, &container)?)),
                Some("qat" | "checkpoint") => bail!(
                    "{shown} is the state of a training run; name int8.ottava or best.ottava beside it"
                ),
                _ => {
                    Ok(Model::Integer(Program::from_container(&container).with_context(|| shown)?))
                }
            }
        }
        Some("onnx") => {
            if named.is_some() {
                bail!("{shown} has a network of its own; --model is for weights alone");
            }
            let bytes = std::fs::read(&path).with_context(|| format!("cannot read {shown}"))?;
            Ok(match interop::onnx_is_quantized(&shown, &bytes)? {
                true => Model::Integer(interop::onnx_program_from_bytes(&shown, &bytes)?),
                false => Model::Float(from_onnx(&shown, &bytes)?),
            })
        }
        _ => Ok(Model::Float(from_weights(&shown, &interop::read_state_dict(&path)?, named)?)),
    }
}

/// Reads a file of ours; errors name it.
pub fn read_container(path: &Path) -> Result<Container> {
    use ottava::quant::Error;
    Container::load(path).map_err(|error| match error {
        Error::Io { .. } => error.into(),
        other => anyhow::Error::new(other).context(path.display().to_string()),
    })
}

/// The float model of a file, or of a run directory: its `best.ottava`.
pub fn load_float(path: &Path, named: Option<&str>) -> Result<FloatModel> {
    let path = in_run(path, &["best.ottava"])?;
    match load(&path, named)? {
        Model::Float(model) => Ok(model),
        Model::Integer(_) => {
            bail!("{} is an integer network; this starts from a float one", path.display())
        }
    }
}

fn in_run(path: &Path, names: &[&str]) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let found = names.iter().map(|name| path.join(name)).find(|file| file.is_file());
    found.with_context(|| format!("the run {} has no {}", path.display(), names.join(" or ")))
}

/// The graph of an ONNX file; one run says how many classes it tells apart.
fn from_onnx(shown: &str, bytes: &[u8]) -> Result<FloatModel> {
    let file = interop::onnx_from_bytes(shown, bytes)?;
    let shape: Vec<usize> =
        std::iter::once(1).chain(file.graph.input_shape().iter().copied()).collect();
    let &[_, channels, height, width] = &shape[..] else {
        bail!("{shown}: the input's shape is {shape:?}, but images have [n, c, h, w]");
    };
    let logits = nn::predict(&file.graph, ottava::autograd::Mode::EVAL, Tensor::zeros(&shape))?;
    let &[_, class_count] = logits.shape() else {
        bail!(
            "{shown}: the output's shape is {:?}, but a classifier's is [n, classes]; add a Flatten",
            logits.shape()
        );
    };
    Ok(FloatModel {
        class_count,
        in_channels: channels,
        input: Some([channels, height, width]),
        classes: class_names(&file.metadata),
        preprocess: Preprocess::from_metadata(&file.metadata).with_context(|| shown.to_owned())?,
        network: FloatNetwork::Onnx(file.graph),
    })
}

/// A network of ours for a state dict: the one that is named, or the one whose names and shapes fit.
fn from_weights(shown: &str, state: &StateDict, named: Option<Architecture>) -> Result<FloatModel> {
    let of_rank =
        |rank: usize| state.iter().map(|(_, t)| t.shape()).filter(move |s| s.len() == rank);
    let (Some(stem), Some(classifier)) = (of_rank(4).next(), of_rank(2).next()) else {
        bail!("{shown} has no convolution or no classifier: no network of ours");
    };
    let of_channels = |in_channels: usize| ModelConfig {
        classes: classifier[0],
        in_channels,
        ..ModelConfig::default()
    };
    let fits = |architecture: Architecture| -> Result<_> {
        let load = |in_channels: usize| {
            let config = of_channels(in_channels);
            Ok((ours(shown, architecture, config, state)?, config))
        };
        load(stem[1]).or_else(|reason| match stem_of(&reason) {
            // The file begins with another layer than the network.
            Some(in_channels) => load(in_channels),
            None => Err(reason),
        })
    };
    let (network, config) = match named {
        Some(architecture) => fits(architecture)?,
        None => {
            let similar = |known: &&Architecture| classifier.get(1) == Some(&known.features());
            let mut similar = Architecture::ALL.iter().filter(similar);
            similar.find_map(|&known| fits(known).ok()).with_context(|| {
                format!("{shown} fits no network of ours; --model NAME lists what differs")
            })?
        }
    };
    Ok(FloatModel {
        network,
        class_count: config.classes,
        in_channels: config.in_channels,
        input: None,
        classes: class_names(&state.metadata),
        preprocess: Preprocess::from_metadata(&state.metadata).with_context(|| shown.to_owned())?,
    })
}

/// The channels of the images, if they are all that a network built for others lacked.
fn stem_of(reason: &anyhow::Error) -> Option<usize> {
    let nn::Error::State { mismatch, .. } = reason.downcast_ref()? else { return None };
    let none_else = mismatch.missing.is_empty() && mismatch.unexpected.is_empty();
    match &mismatch.misshapen[..] {
        [stem] if none_else => stem.found.get(1).copied(),
        _ => None,
    }
}

fn ours(
    shown: &str,
    architecture: Architecture,
    config: ModelConfig,
    state: &StateDict,
) -> Result<FloatNetwork> {
    // Memory is for what the file holds: every network of ours has as many numbers at least, in its first
    // layer (16 windows of 3×3) and its classifier.
    let least = (16 * 9 * config.in_channels as u128)
        .max(architecture.features() as u128 * config.classes as u128);
    let found: u128 = state.iter().map(|(_, tensor)| tensor.len() as u128).sum();
    if found < least {
        bail!(
            "{shown} is no {architecture} for {} channels and {} classes: it holds {found} numbers",
            config.in_channels,
            config.classes
        );
    }
    let network = architecture.build(&config)?;
    network
        .load_state_dict(state.clone().into())
        .with_context(|| format!("{shown} is no {architecture}"))?;
    Ok(FloatNetwork::Ours(architecture, network))
}
