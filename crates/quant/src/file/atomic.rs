use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

/// Writes a file so that whoever looks, even after a crash, finds either all of it or what was there
/// before: into a new file beside it, synced, then renamed over it, with the permissions of what was there. A link to a file is
/// followed; what is no regular file (`/dev/stdout`) is written to directly.
///
/// # Errors
/// [`Error::Io`] with the path and what the system said. The file beside it is gone then.
pub fn write_atomic(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let path = path.as_ref();
    let failed = |error: std::io::Error| Error::Io {
        path: path.to_path_buf(),
        reason: format!("cannot write: {error}"),
    };
    if fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        return fs::write(path, bytes).map_err(failed);
    }
    // Renaming over a link would replace the link.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let unique = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut name = OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(format!(".{}.{unique}.tmp", std::process::id()));
    let beside = target.with_file_name(name);
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&beside)
        .and_then(|mut file| {
            if let Ok(there) = fs::metadata(&target) {
                file.set_permissions(there.permissions())?;
            }
            file.write_all(bytes).and_then(|()| file.sync_all())
        })
        .and_then(|()| fs::rename(&beside, &target));
    written.map_err(|error| {
        // Best effort: the error that matters is the one above.
        let _ = fs::remove_file(&beside);
        failed(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_nothing_is_left_beside_it() {
        let folder = std::env::temp_dir().join(format!("ottava-atomic-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("model.ottava");
        write_atomic(&path, b"first").unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            write_atomic(&path, b"first").unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        write_atomic(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        let error = write_atomic(folder.join("none/model"), b"").unwrap_err().to_string();
        assert!(error.contains("none") && error.contains("cannot write"), "{error}");
        assert!(write_atomic(&folder, b"").is_err());
        fs::remove_dir_all(&folder).unwrap();
    }
}
