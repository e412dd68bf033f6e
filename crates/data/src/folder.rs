use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::dataset::beyond;
use crate::{Dataset, Error, Image, Result, Sample, Split, read_image};

/// Names in use for the two splits.
const TRAIN: [&str; 2] = ["train", "training"];
const TEST: [&str; 5] = ["val", "valid", "validation", "test", "testing"];
const EXTENSIONS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];
/// Pictures too, but of no format that is read: they are bad images, rather than none.
const UNREAD: [&str; 7] = ["bmp", "gif", "pbm", "pgm", "ppm", "tif", "tiff"];

/// Pictures in folders, one folder a class: `DIR/train/CLASS/*.jpg`, `DIR/val/CLASS/*.jpg`, as
/// torchvision's `ImageFolder`.
///
/// Classes and files are sorted by path, part by part; what begins with a dot belongs to tools. Pictures are
/// read and decoded when they are asked for, always as RGB.
#[derive(Clone, Debug)]
pub struct ImageFolder {
    classes: Vec<String>,
    files: Vec<(PathBuf, usize)>,
}

impl ImageFolder {
    /// Lists the pictures of one split. The classes are those of the training split, for both.
    ///
    /// # Errors
    /// [`Error::Io`] if a folder is missing or cannot be read, [`Error::DataSet`] if there is no
    /// class, a class without pictures, or one that training does not have.
    pub fn new(dir: &Path, split: Split) -> Result<Self> {
        let train = find(dir, &TRAIN)?;
        let classes = class_folders(&train)?;
        if classes.is_empty() {
            let reason = format!("{} holds no folders, one for each class", train.display());
            return Err(Error::DataSet { reason });
        }
        let root = match split {
            Split::Train => train,
            Split::Test => find(dir, &TEST)?,
        };
        let mut files = Vec::new();
        for class in class_folders(&root)? {
            let Ok(label) = classes.binary_search(&class) else {
                let path = root.join(&class);
                let reason = format!("{} is a class that training does not have", path.display());
                return Err(Error::DataSet { reason });
            };
            let folder = root.join(&class);
            let mut found = Vec::new();
            // A link to a folder above would bring the pictures of other classes.
            let above = real(&root)?;
            let mut seen = above.ancestors().map(Path::to_owned).collect();
            pictures(&folder, &mut seen, &mut found)?;
            if found.is_empty() {
                let (shown, read) = (folder.display(), EXTENSIONS.join(", "));
                let reason = format!("{shown} is a class without pictures ({read})");
                return Err(Error::DataSet { reason });
            }
            files.extend(found.into_iter().map(|path| (path, label)));
        }
        if files.is_empty() {
            let reason = format!("{} holds no folders of classes", root.display());
            return Err(Error::DataSet { reason });
        }
        Ok(Self { classes, files })
    }

    /// The file of the picture at `index`.
    pub fn path(&self, index: usize) -> Option<&Path> {
        self.files.get(index).map(|(path, _)| path.as_path())
    }
}

impl Dataset for ImageFolder {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn shape(&self) -> Option<[usize; 3]> {
        None
    }

    fn get(&self, index: usize) -> Result<Sample> {
        let (path, label) = self.files.get(index).ok_or_else(|| beyond(index, self.len()))?;
        let image: Image = read_image(path)?;
        Ok(Sample { image, label: *label })
    }
}

fn find(dir: &Path, names: &[&str]) -> Result<PathBuf> {
    names.iter().map(|name| dir.join(name)).find(|path| path.is_dir()).ok_or_else(|| {
        let reason =
            format!("no folder {} here; pictures belong into {}/CLASS", names[0], names[0]);
        Error::Io { path: dir.display().to_string(), reason }
    })
}

/// The names of the folders in `root`, sorted.
fn class_folders(root: &Path) -> Result<Vec<String>> {
    let mut classes = Vec::new();
    for entry in fs::read_dir(root).map_err(|error| Error::io(root, &error))? {
        let path = entry.map_err(|error| Error::io(root, &error))?.path();
        let name = path.file_name().unwrap_or_default();
        if path.is_dir() {
            match name.to_str() {
                // Hidden folders belong to tools.
                Some(name) if name.starts_with('.') => {}
                Some(name) => classes.push(name.to_string()),
                None => {
                    let reason = format!("{} is a class whose name is not UTF-8", path.display());
                    return Err(Error::DataSet { reason });
                }
            }
        }
    }
    classes.sort();
    Ok(classes)
}

/// Adds the pictures below a folder by path, but for folders that were `seen`: links may lead back.
fn pictures(dir: &Path, seen: &mut HashSet<PathBuf>, found: &mut Vec<PathBuf>) -> Result<()> {
    if !seen.insert(real(dir)?) {
        return Ok(());
    }
    let listed = fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>());
    let mut paths = listed.map_err(|error| Error::io(dir, &error))?;
    // Of several links to a folder the first by name counts, however the system lists them.
    paths.sort();
    for path in paths {
        if path.file_name().unwrap_or_default().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let kind = path.metadata();
        if kind.as_ref().is_ok_and(|kind| kind.is_dir()) {
            pictures(&path, seen, found)?;
            continue;
        }
        // Reading a pipe would wait for ever. A link that leads nowhere is a bad picture, and said to be one.
        if kind.is_ok_and(|kind| !kind.is_file()) {
            continue;
        }
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        if EXTENSIONS.iter().chain(&UNREAD).any(|known| *known == extension) {
            found.push(path);
        }
    }
    Ok(())
}

/// A folder's path without links.
fn real(dir: &Path) -> Result<PathBuf> {
    dir.canonicalize().map_err(|error| Error::io(dir, &error))
}
