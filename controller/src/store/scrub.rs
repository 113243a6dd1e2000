//! Wipes a secret from the store's file, wherever the database has left it.
//!
//! redb never writes over what is there: each change goes to other pages, and the old ones keep their bytes until something else happens to
//! need them. So a key that was removed is still in the file, once for each change of the table since it was made. What is wiped here belongs
//! to no state of the database that is in use or that a crash could bring back: the last two commits are without the secret.

use std::{fs::File, io, os::unix::fs::FileExt};

/// Read at once.
const PIECE_BYTES: usize = 1 << 20;

/// Overwrites every copy of `secret` in the file with zeros, for good.
pub(super) fn wipe(file: &File, secret: &[u8; 32]) -> io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES + secret.len() - 1];
    let mut at = 0;
    loop {
        let read = fill(file, &mut piece, at)?;
        let found = piece[..read].windows(secret.len()).enumerate().filter(|(_, bytes)| bytes == secret);
        for (within, _) in found {
            file.write_all_at(&[0; 32], at + within as u64)?;
        }
        if read < piece.len() {
            break;
        }
        // One that begins at the end of this piece is whole in the next.
        at += PIECE_BYTES as u64;
    }
    file.sync_all()
}

/// As much as there is from here on.
fn fill(file: &File, piece: &mut [u8], at: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < piece.len() {
        match file.read_at(&mut piece[read..], at + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn every_copy_goes_and_nothing_else_does() {
        let secret: [u8; 32] = std::array::from_fn(|at| at as u8 + 1);
        let mut bytes = vec![0xee; 3 * PIECE_BYTES + 17];
        // At both ends, inside, and across the border of two pieces.
        let places = [0, 777, PIECE_BYTES - 1, 2 * PIECE_BYTES - 31, 2 * PIECE_BYTES + 1, bytes.len() - 32];
        for at in places {
            bytes[at..at + 32].copy_from_slice(&secret);
        }
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&bytes).unwrap();
        wipe(file.as_file(), &secret).unwrap();
        for at in places {
            bytes[at..at + 32].fill(0);
        }
        assert!(std::fs::read(file.path()).unwrap() == bytes);
    }
}
