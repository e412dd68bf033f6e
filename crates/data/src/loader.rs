use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use ottava_tensor::Tensor;
use rand::seq::SliceRandom;

use crate::preprocess::look_up;
use crate::rng::{Purpose, stream};
use crate::{Augment, Dataset, Error, Preprocess, Result};

/// What to do about an image that cannot be read or decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnBadImage {
    /// The epoch ends with its error.
    #[default]
    Refuse,
    /// The batch goes without it; [`Epoch::skipped`] and [`Loader::skipped`] list it.
    Skip,
}

/// How a [`Loader`] makes batches.
#[derive(Clone, Debug, PartialEq)]
pub struct LoaderOptions {
    /// Images a batch.
    pub batch: usize,
    /// A new random order each epoch; otherwise the data set's own.
    pub shuffle: bool,
    /// What order and augmentation depend on, together with the epoch.
    pub seed: u64,
    /// Leaves out a last batch that is not full.
    pub drop_last: bool,
    /// Background threads; with none, batches are made when they are asked for. Has no influence
    /// on what is in them.
    pub workers: usize,
    /// Batches that each background thread keeps ready.
    pub prefetch: usize,
    /// What training does to each image.
    pub augment: Augment,
    /// What to do about an image that cannot be read.
    pub on_bad_image: OnBadImage,
}

impl Default for LoaderOptions {
    /// Batches of 128 in the data set's order, unchanged, made by one background thread.
    fn default() -> Self {
        Self {
            batch: 128,
            shuffle: false,
            seed: 0,
            drop_last: false,
            workers: 1,
            prefetch: 2,
            augment: Augment::none(),
            on_bad_image: OnBadImage::Refuse,
        }
    }
}

/// Images and labels, ready for a network.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Logical shape `[n, channels, height, width]`, channels-last in memory.
    pub images: Tensor<f32>,
    /// `n` classes.
    pub labels: Vec<usize>,
    /// Which images of the data set these are.
    pub indices: Vec<usize>,
}

/// Makes batches of a data set, in the same order with the same content for the same seed and
/// epoch, whatever the number of threads.
///
/// ```
/// use ottava_data::{DataSpec, Loader, LoaderOptions, Preprocess, Split};
///
/// let data = "synthetic:3x8x8:10:100".parse::<DataSpec>()?.load(Split::Train)?;
/// let options = LoaderOptions { batch: 32, shuffle: true, ..LoaderOptions::default() };
/// let loader = Loader::new(data, Preprocess::unit(), options)?;
/// let sizes: Vec<usize> =
///     loader.epoch(0).map(|batch| Ok(batch?.labels.len())).collect::<ottava_data::Result<_>>()?;
/// assert_eq!(sizes, [32, 32, 32, 4]);
/// # Ok::<(), ottava_data::Error>(())
/// ```
#[derive(Clone)]
pub struct Loader {
    inner: Arc<Inner>,
}

/// What the background threads share.
struct Inner {
    data: Arc<dyn Dataset>,
    preprocess: Preprocess,
    options: LoaderOptions,
    /// What all epochs so far left out.
    skipped: Mutex<BTreeMap<usize, Error>>,
}

/// One batch as it is made: what could be loaded, and what could not.
struct Made {
    batch: Option<Batch>,
    skipped: Vec<(usize, Error)>,
}

/// More background threads than this make no sense.
pub const MAX_WORKERS: usize = 256;

/// More batches than this, for each thread, wait for nobody.
const MAX_PREFETCH: usize = 4096;

impl Loader {
    /// A loader of `data`.
    ///
    /// # Errors
    /// [`Error::Loader`] for batches of no images or absurd numbers of threads or batches ahead,
    /// [`Error::DataSet`] for an empty data set, [`Error::Preprocess`] if preprocessing or
    /// augmentation make no sense or do not fit the data.
    pub fn new(
        data: Arc<dyn Dataset>,
        preprocess: Preprocess,
        options: LoaderOptions,
    ) -> Result<Self> {
        let LoaderOptions { batch, workers, prefetch, .. } = options;
        if batch == 0 || workers > MAX_WORKERS || prefetch > MAX_PREFETCH {
            let reason = format!(
                "a loader with {batch} images a batch, {workers} threads and {prefetch} batches ahead; needs at \
                 least one image and at most {MAX_WORKERS} threads and {MAX_PREFETCH} batches"
            );
            return Err(Error::Loader { reason });
        }
        if data.is_empty() {
            return Err(Error::DataSet { reason: "the data set has no images".into() });
        }
        options.augment.check()?;
        let preprocess = preprocess.fitted_to(&*data)?;
        let skipped = Mutex::default();
        Ok(Self { inner: Arc::new(Inner { data, preprocess, options, skipped }) })
    }

    /// The data set.
    pub fn data(&self) -> &Arc<dyn Dataset> {
        &self.inner.data
    }

    /// The preprocessing, fitted to the data set (see [`Preprocess::fitted_to`]).
    pub fn preprocess(&self) -> &Preprocess {
        &self.inner.preprocess
    }

    /// How the batches are made.
    pub fn options(&self) -> &LoaderOptions {
        &self.inner.options
    }

    /// The images that could not be loaded in any epoch so far, by index, and why.
    pub fn skipped(&self) -> BTreeMap<usize, Error> {
        self.inner.skipped.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many batches an epoch has.
    pub fn batches(&self) -> usize {
        let (len, batch) = (self.inner.data.len(), self.inner.options.batch);
        if self.inner.options.drop_last { len / batch } else { len.div_ceil(batch) }
    }

    /// The batches of epoch `epoch`. Background threads start at once and end with the iterator.
    pub fn epoch(&self, epoch: u64) -> Epoch {
        let (inner, batches) = (&self.inner, self.batches());
        let order = Arc::new(inner.order(epoch));
        let workers = inner.options.workers.min(batches);
        let mut results = Epoch {
            inner: Arc::clone(inner),
            order: Arc::clone(&order),
            epoch,
            next: 0,
            batches,
            lanes: Vec::with_capacity(workers),
            threads: Vec::with_capacity(workers),
            skipped: BTreeMap::new(),
        };
        // Thread w makes batches w, w + workers, …; reading the lanes in turn restores the order.
        for worker in 0..workers {
            let (sender, receiver) = sync_channel(inner.options.prefetch.max(1));
            let (inner, order) = (Arc::clone(inner), Arc::clone(&order));
            let work = move || {
                for batch in (worker..batches).step_by(workers) {
                    let made = inner.make(&order, epoch, batch);
                    // Nobody listens any more once the iterator is dropped.
                    if sender.send(made).is_err() {
                        return;
                    }
                }
            };
            let builder = thread::Builder::new().name(format!("ottava-data-{worker}"));
            match builder.spawn(work) {
                Ok(thread) => {
                    results.lanes.push(receiver);
                    results.threads.push(thread);
                }
                Err(_) => {
                    // No threads to be had: the caller makes all batches itself.
                    results.lanes.clear();
                    break;
                }
            }
        }
        results
    }
}

impl Inner {
    fn order(&self, epoch: u64) -> Vec<usize> {
        let mut order = Vec::from_iter(0..self.data.len());
        if self.options.shuffle {
            order.shuffle(&mut stream(Purpose::Shuffle, self.options.seed, epoch, 0));
        }
        order
    }

    fn make(&self, order: &[usize], epoch: u64, batch: usize) -> Result<Made> {
        let begin = batch * self.options.batch;
        let indices = &order[begin..order.len().min(begin + self.options.batch)];
        let mut made = Made { batch: None, skipped: Vec::new() };
        let mut loaded = Vec::with_capacity(indices.len());
        for &index in indices {
            match self.data.get(index) {
                Ok(sample) => {
                    let LoaderOptions { augment, seed, .. } = &self.options;
                    let image =
                        augment.apply(sample.image, &self.preprocess, *seed, epoch, index)?;
                    loaded.push((index, sample.label, image));
                }
                Err(error) if self.options.on_bad_image == OnBadImage::Skip => {
                    made.skipped.push((index, error));
                }
                Err(error) => return Err(error),
            }
        }
        let Some((_, _, first)) = loaded.first() else { return Ok(made) };
        let shape @ [channels, height, width] = first.shape();
        let tables = self.preprocess.tables(channels)?;
        let mut images = Tensor::zeros_channels_last(&[loaded.len(), channels, height, width]);
        let targets = images.data_mut().chunks_mut(channels * height * width);
        for (target, (index, _, image)) in targets.zip(&loaded) {
            if image.shape() != shape {
                let reason = format!(
                    "image {index} has shape {:?} where its batch has {shape:?}; ask for a resize \
                     and a crop",
                    image.shape()
                );
                return Err(Error::Preprocess { reason });
            }
            look_up(&tables, image, target);
        }
        let labels = loaded.iter().map(|&(_, label, _)| label).collect();
        let indices = loaded.iter().map(|&(index, _, _)| index).collect();
        made.batch = Some(Batch { images, labels, indices });
        Ok(made)
    }
}

/// The batches of one epoch, in order; made by [`Loader::epoch`].
pub struct Epoch {
    inner: Arc<Inner>,
    order: Arc<Vec<usize>>,
    epoch: u64,
    next: usize,
    batches: usize,
    /// One for each background thread; empty if there are none.
    lanes: Vec<Receiver<Result<Made>>>,
    threads: Vec<JoinHandle<()>>,
    skipped: BTreeMap<usize, Error>,
}

impl Epoch {
    /// The images that could not be loaded so far, by index, and why.
    pub fn skipped(&self) -> &BTreeMap<usize, Error> {
        &self.skipped
    }

    fn receive(&self, batch: usize) -> Result<Made> {
        if self.lanes.is_empty() {
            return self.inner.make(&self.order, self.epoch, batch);
        }
        self.lanes[batch % self.lanes.len()].recv().unwrap_or_else(|_| {
            let reason = format!("a thread that loads images died before batch {batch}");
            Err(Error::Loader { reason })
        })
    }
}

impl Iterator for Epoch {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.next < self.batches {
            let made = self.receive(self.next);
            self.next += 1;
            match made {
                Ok(made) => {
                    if !made.skipped.is_empty() {
                        let all = &self.inner.skipped;
                        let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
                        all.extend(made.skipped.iter().cloned());
                    }
                    self.skipped.extend(made.skipped);
                    if let Some(batch) = made.batch {
                        return Some(Ok(batch));
                    }
                    // Not one image of this batch could be loaded: on to the next.
                }
                Err(error) => {
                    self.next = self.batches;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

impl Drop for Epoch {
    fn drop(&mut self) {
        // A thread that waits to send wakes up when its receiver goes.
        self.lanes.clear();
        for thread in self.threads.drain(..) {
            // A panic there was reported as a dead thread when its batch was asked for.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Image, Sample, Split, Synthetic};

    fn data(len: usize) -> Arc<dyn Dataset> {
        Arc::new(Synthetic::new([3, 8, 8], 4, len, 0, Split::Train).unwrap())
    }

    fn batches(loader: &Loader, epoch: u64) -> Vec<Batch> {
        loader.epoch(epoch).collect::<Result<_>>().unwrap()
    }

    #[test]
    fn batches_are_the_same_for_any_number_of_threads() {
        let run = |workers| {
            let augment = Augment::standard([3, 8, 8]);
            let options = LoaderOptions {
                batch: 7,
                shuffle: true,
                seed: 5,
                workers,
                augment,
                ..Default::default()
            };
            batches(&Loader::new(data(50), Preprocess::imagenet(), options).unwrap(), 3)
        };
        let alone = run(0);
        assert_eq!(alone.len(), 8);
        for workers in [1, 3, 20] {
            assert_eq!(run(workers), alone);
        }
    }

    #[test]
    fn an_epoch_shows_every_image_once_in_an_order_of_its_own() {
        let options = LoaderOptions { batch: 8, shuffle: true, ..Default::default() };
        let loader = Loader::new(data(50), Preprocess::raw(), options).unwrap();
        let order =
            |epoch| batches(&loader, epoch).into_iter().flat_map(|b| b.indices).collect::<Vec<_>>();
        let (first, mut second) = (order(0), order(1));
        assert!(first != second && first == order(0));
        second.sort();
        assert_eq!(second, Vec::from_iter(0..50));
    }

    #[test]
    fn a_batch_holds_the_pixels_in_channels_last_memory() {
        let options = LoaderOptions { batch: 20, drop_last: true, ..Default::default() };
        let loader = Loader::new(data(50), Preprocess::raw(), options).unwrap();
        let batches = batches(&loader, 0);
        assert_eq!((batches.len(), loader.batches()), (2, 2));
        assert!(batches[1].images.is_channels_last());
        let sample = data(50).get(23).unwrap();
        assert_eq!(batches[1].labels[3], sample.label);
        let at = |c, y, x| batches[1].images.at(&[3, c, y, x]);
        assert_eq!(at(2, 5, 6), f32::from(sample.image.at(5, 6, 2)));
    }

    /// Every third image cannot be read.
    struct Broken(Arc<dyn Dataset>);

    impl Dataset for Broken {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn classes(&self) -> &[String] {
            self.0.classes()
        }
        fn shape(&self) -> Option<[usize; 3]> {
            self.0.shape()
        }
        fn get(&self, index: usize) -> Result<Sample> {
            match index % 3 {
                0 => Err(Error::DataSet { reason: format!("image {index} is torn") }),
                _ => self.0.get(index),
            }
        }
    }

    #[test]
    fn bad_images_end_the_epoch_or_are_listed() {
        let loader = |on_bad_image, batch| {
            let options = LoaderOptions { batch, on_bad_image, workers: 2, ..Default::default() };
            Loader::new(Arc::new(Broken(data(10))), Preprocess::unit(), options).unwrap()
        };
        let refused: Vec<_> = loader(OnBadImage::Refuse, 4).epoch(0).collect();
        assert_eq!(refused.len(), 1);
        assert!(refused[0].as_ref().unwrap_err().to_string().contains("image 0 is torn"));
        // With one image a batch, whole batches vanish.
        for batch in [1, 4] {
            let loader = loader(OnBadImage::Skip, batch);
            let mut epoch = loader.epoch(0);
            let shown: usize = epoch.by_ref().map(|batch| batch.unwrap().labels.len()).sum();
            assert_eq!(shown, 6);
            assert_eq!(Vec::from_iter(epoch.skipped().keys().copied()), [0, 3, 6, 9]);
            assert_eq!(&loader.skipped(), epoch.skipped());
        }
    }

    #[test]
    fn leaving_early_ends_the_threads() {
        let options = LoaderOptions { batch: 1, workers: 3, prefetch: 1, ..Default::default() };
        let loader = Loader::new(data(100), Preprocess::unit(), options).unwrap();
        let first = loader.epoch(0).next().unwrap().unwrap();
        assert_eq!(first.indices, [0]);
        // Each thread had one of these.
        assert_eq!(Arc::strong_count(&loader.inner), 1);
    }

    #[test]
    fn absurd_numbers_are_refused() {
        for options in [
            LoaderOptions { batch: 0, ..Default::default() },
            LoaderOptions { workers: MAX_WORKERS + 1, ..Default::default() },
            LoaderOptions { prefetch: usize::MAX, ..Default::default() },
        ] {
            let refused = Loader::new(data(10), Preprocess::unit(), options);
            assert!(matches!(refused, Err(Error::Loader { .. })));
        }
    }

    /// Images of different sizes.
    struct Uneven(Vec<String>);

    impl Dataset for Uneven {
        fn len(&self) -> usize {
            4
        }
        fn classes(&self) -> &[String] {
            &self.0
        }
        fn shape(&self) -> Option<[usize; 3]> {
            None
        }
        fn get(&self, index: usize) -> Result<Sample> {
            let image = Image::new(3, 4 + index, 9, vec![9; 3 * (4 + index) * 9])?;
            Ok(Sample { image, label: 0 })
        }
    }

    #[test]
    fn images_of_many_sizes_are_brought_to_one() {
        let data = Arc::new(Uneven(vec!["a".into()]));
        let preprocess: Preprocess = "imagenet,resize=8".parse().unwrap();
        let loader = Loader::new(data, preprocess, LoaderOptions::default()).unwrap();
        assert_eq!(loader.preprocess().crop, Some((7, 7)));
        assert_eq!(batches(&loader, 0)[0].images.shape(), [4, 3, 7, 7]);
    }

    #[test]
    fn random_windows_of_uneven_images_are_the_same_for_any_number_of_threads() {
        let run = |workers| {
            let data = Arc::new(Uneven(vec!["a".into()]));
            let preprocess: Preprocess = "unit,resize=8".parse().unwrap();
            let augment = Augment::suited_to(&*data, &preprocess).unwrap();
            assert!(augment.resized_crop.is_some());
            let options =
                LoaderOptions { batch: 1, shuffle: true, workers, augment, ..Default::default() };
            batches(&Loader::new(data, preprocess, options).unwrap(), 2)
        };
        let alone = run(0);
        assert!(alone.iter().all(|batch| batch.images.shape() == [1, 3, 7, 7]));
        assert!(run(1) == alone && run(3) == alone);
    }
}
