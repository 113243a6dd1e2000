//! A sandbox's images as CRIU wrote them, in one compressed piece of memory.

use std::{
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use medes_agent::dump::Folder;

use crate::station::plain::Images;

/// No file of a sandbox here is larger.
const FILE_BYTES_MAX: u64 = 8 << 30;

/// Images, compressed, without their folder.
#[derive(Debug)]
pub(super) struct Packed {
    bytes: Vec<u8>,
    folder: PathBuf,
    pipe: String,
}

impl Packed {
    /// Compresses all files of the folder, and removes it.
    pub(super) fn of(images: Images, level: i32) -> Result<Self> {
        let folder = images.path().to_owned();
        let bytes = pack(&folder, level).with_context(|| format!("compress {}", folder.display()))?;
        let pipe = images.pipe().to_owned();
        drop(images);
        Ok(Self { bytes, folder, pipe })
    }

    /// Memory it takes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The images as they were, where they were.
    pub(super) fn unpack(self) -> Result<Images> {
        let Self { bytes, folder, pipe } = self;
        let made = Folder::create(folder).context("make a folder for images")?;
        unpack(&bytes, made.path()).with_context(|| format!("decompress into {}", made.path().display()))?;
        Ok(Images::again(made, pipe))
    }
}

/// Each file as length of its name, name, length, bytes; all in one stream.
fn pack(folder: &Path, level: i32) -> Result<Vec<u8>> {
    let mut out = zstd::Encoder::new(Vec::new(), level)?;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).context("a file's name is no text")?;
        let mut file = fs::File::open(&path)?;
        let length = file.metadata()?.len();
        out.write_all(&u16::try_from(name.len())?.to_le_bytes())?;
        out.write_all(name.as_bytes())?;
        out.write_all(&length.to_le_bytes())?;
        ensure!(std::io::copy(&mut file, &mut out)? == length, "{name} changed while it was read");
    }
    Ok(out.finish()?)
}

fn unpack(bytes: &[u8], folder: &Path) -> Result<()> {
    let mut from = zstd::Decoder::new(bytes)?;
    loop {
        let mut length = [0; 2];
        if from.read(&mut length[..1])? == 0 {
            return Ok(());
        }
        from.read_exact(&mut length[1..])?;
        let mut name = vec![0; usize::from(u16::from_le_bytes(length))];
        from.read_exact(&mut name)?;
        let mut length = [0; 8];
        from.read_exact(&mut length)?;
        let length = u64::from_le_bytes(length);
        ensure!(length <= FILE_BYTES_MAX, "a file of {length} bytes");
        let mut file = fs::File::create_new(folder.join(String::from_utf8(name)?))?;
        let copied = std::io::copy(&mut from.by_ref().take(length), &mut file)?;
        ensure!(copied == length, "the last file is cut off");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_back_as_they_were() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let files =
            [("pages-1.img", vec![7; 100_000]), ("empty.img", Vec::new()), ("core-1.img", vec![1, 2, 3])];
        for (name, bytes) in &files {
            fs::write(from.path().join(name), bytes).unwrap();
        }
        let packed = pack(from.path(), 1).unwrap();
        assert!(packed.len() < 1000, "{}", packed.len());
        unpack(&packed, to.path()).unwrap();
        for (name, bytes) in &files {
            assert_eq!(&fs::read(to.path().join(name)).unwrap(), bytes, "{name}");
        }
        assert!(unpack(&packed[..packed.len() / 2], tempfile::tempdir().unwrap().path()).is_err());
    }
}
