//! Where the pages of a dumped process were, with the paths of what was mapped, so that another node understands it too.

use std::{collections::BTreeMap, sync::Arc};

use medes_dedup::mapping::{self, FileName, Mappings};
use medes_proto::layout::{Backing, LayoutError, ProcessLayout, Region, Run};

use crate::criu::images::{self, ImageFileError};

/// It is not known where a sandbox's pages were: it is stored all the same, but not aligned.
#[derive(Debug, thiserror::Error)]
pub enum UnknownLayout {
    /// CRIU's files do not say.
    #[error("read what was mapped")]
    Images(#[from] ImageFileError),
    /// They say something that cannot be.
    #[error("understand where its pages were")]
    Layout(#[from] LayoutError),
    /// A run of more pages than can be stored.
    #[error("a run of {pages} pages")]
    Run {
        /// How many.
        pages: u64,
    },
}

/// Paths by the numbers the engine has for them.
pub(crate) type Names = BTreeMap<FileName, Arc<[u8]>>;

/// The numbers of these paths, and of what the kernel maps without one.
pub(crate) fn names(paths: impl IntoIterator<Item = Arc<[u8]>>) -> Names {
    let kernel = ["[vdso]", "[vvar]"].map(|name| Arc::from(name.as_bytes()));
    paths.into_iter().chain(kernel).map(|path| (FileName::of(&path), path)).collect()
}

/// The layout of one process.
pub(crate) fn process(
    runs: &[images::Run],
    mappings: &Mappings,
    names: &Names,
) -> Result<ProcessLayout, UnknownLayout> {
    let run = |run: &images::Run| match u32::try_from(run.pages) {
        Ok(pages) => Ok(Run { address: run.address, pages }),
        Err(_) => Err(UnknownLayout::Run { pages: run.pages }),
    };
    let runs = runs.iter().map(run).collect::<Result<_, _>>()?;
    let region = |mapping: &mapping::Mapping| Region {
        start: mapping.start,
        end: mapping.end,
        backing: match mapping.backing {
            // A file without a path can be told from nothing else: as good as memory without a file.
            mapping::Backing::File { name, offset } => names
                .get(&name)
                .map_or(Backing::Anonymous, |path| Backing::File { path: path.clone(), offset }),
            mapping::Backing::Heap => Backing::Heap,
            mapping::Backing::Stack => Backing::Stack,
            mapping::Backing::Anonymous => Backing::Anonymous,
        },
    };
    Ok(ProcessLayout::new(runs, mappings.as_slice().iter().map(region).collect())?)
}

#[cfg(test)]
mod tests {
    use medes_dedup::mapping::Mapping;

    use super::*;

    #[test]
    fn the_engine_sees_the_same_mappings_before_and_after() {
        let file = |path: &[u8]| mapping::Backing::File { name: FileName::of(path), offset: 8192 };
        let backings =
            [file(b"/bin/x"), mapping::Backing::Heap, mapping::Backing::Anonymous, file(b"[vdso]")];
        let at = |(at, backing): (u64, _)| Mapping { start: at * 4096, end: (at + 1) * 4096, backing };
        let mappings = Mappings::new((1..).zip(backings).map(at)).unwrap();
        let names = names([Arc::from(&b"/bin/x"[..])]);
        let layout = process(&[images::Run { address: 4096, pages: 2 }], &mappings, &names).unwrap();
        assert_eq!(layout.mappings().as_slice(), mappings.as_slice());
        assert_eq!((layout.program(), layout.addresses()), (Some(&b"/bin/x"[..]), vec![4096, 8192]));
    }
}
