//! The sending end: what a node says of a sandbox that it offers, and its bytes.

use std::{io, iter, path::PathBuf};

use bytes::Bytes;
use futures::{Stream, stream};
use medes_dedup::key::DomainKey;
use medes_proto::{
    ids::FunctionName,
    limits::{IMAGE_PART_BYTES_MAX, MOVED_FILES_BYTES_MAX},
    moving::{ImageHead, ImagePart, ImageRequest},
    sandbox::PageClasses,
    wire,
};
use prost::Message;

use super::{
    encryption::{EncryptError, Encryptor},
    monotonic,
};
use crate::{earlier::Origin, memory_file::MappedFile, private_files, roads::Stored};

/// What of a sandbox goes to another node.
#[derive(Debug)]
pub struct Parcel {
    image: MappedFile,
    /// The folder of its private files.
    folder: PathBuf,
    origin: Origin,
    record: Record,
    function: FunctionName,
    key: DomainKey,
}

/// What the driver of its node knows of a sandbox that is in dedup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Record {
    /// What became of its pages.
    pub pages: PageClasses,
    /// Requests it has answered.
    pub requests: u64,
    /// How often it came back.
    pub starts_from_dedup: u64,
}

impl Parcel {
    /// Of a sandbox that stays where it is meanwhile. `key`: its tenant's.
    pub fn of(stored: &Stored, record: Record, key: DomainKey) -> Self {
        let (image, origin) = (stored.image.clone(), stored.origin.clone());
        let (folder, function) = (stored.housing.private_dir().to_owned(), stored.spec.name.clone());
        Self { image, folder, origin, record, function, key }
    }

    /// Packs the private files. Blocks.
    ///
    /// # Errors
    /// The files cannot be read (the sandbox was removed meanwhile), or are too many.
    pub fn pack(self) -> io::Result<Packed> {
        let Self { image, folder, origin, record, function, key } = self;
        let bytes_max = usize::try_from(MOVED_FILES_BYTES_MAX).unwrap_or(usize::MAX);
        let files = private_files::pack(&folder, bytes_max)?;
        if files.len() > bytes_max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let Record { pages, requests, starts_from_dedup } = record;
        let head = ImageHead {
            image_bytes: image.as_ref().len() as u64,
            file_bytes: files.len() as u64,
            places: origin.places.into_values().collect(),
            aligned_with: origin.aligned_with,
            pages,
            requests,
            starts_from_dedup,
            monotonic: monotonic(),
        };
        Ok(Packed { head, image, files: files.into(), function, key })
    }
}

/// Ready to be sent.
#[derive(Debug)]
pub struct Packed {
    pub(super) head: ImageHead,
    pub(super) image: MappedFile,
    pub(super) files: Bytes,
    pub(super) function: FunctionName,
    pub(super) key: DomainKey,
}

impl Packed {
    /// All of it, part by part, for whoever asked so. Each part is encrypted when it is wanted.
    pub fn parts(
        self,
        request: &ImageRequest,
    ) -> Result<impl Stream<Item = Result<wire::ImagePart, EncryptError>> + Send + 'static, EncryptError>
    {
        let Self { head, image, files, function, key } = self;
        let (mut encryptor, salt) = Encryptor::new(&key, &function, request)?;
        let head = Bytes::from(wire::ImageHead::from(head).encode_to_vec());
        let mut plain =
            iter::once(head).chain(pieces(Bytes::from_owner(image))).chain(pieces(files)).peekable();
        let encrypted = iter::from_fn(move || {
            let piece = plain.next()?;
            Some(encryptor.encrypt(&piece, plain.peek().is_none()).map(ImagePart::Encrypted))
        });
        let parts = iter::once(Ok(ImagePart::Salt(salt))).chain(encrypted);
        Ok(stream::iter(parts.map(|part| part.map(Into::into))))
    }
}

fn pieces(bytes: Bytes) -> impl Iterator<Item = Bytes> + Send + 'static {
    let starts = (0..bytes.len()).step_by(IMAGE_PART_BYTES_MAX);
    starts.map(move |start| bytes.slice(start..bytes.len().min(start + IMAGE_PART_BYTES_MAX)))
}
