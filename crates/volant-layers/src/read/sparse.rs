//! Where the bytes of a sparse file are; between them it is zero.

/// No file has more pieces.
pub(super) const MAX_PIECES: usize = 1 << 20;

/// The offset and the length of a piece.
pub(super) type Piece = (u64, u64);

/// The pieces of a file that are in the archive, in order.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    pieces: Vec<Piece>,
    /// Of the file, holes included.
    pub size: u64,
}

/// What to read next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Zeros(u64),
    Bytes(u64),
    End,
}

impl Pieces {
    /// A file without holes.
    pub fn whole(size: u64) -> Self {
        let pieces = vec![(0, size)];
        Self { pieces, size }
    }

    /// A file of `size` bytes, of which `stored` are in the archive. Nothing when the pieces are not in order,
    /// overlap, or are not all that is stored.
    pub fn sparse(pieces: Vec<Piece>, size: u64, stored: u64) -> Option<Self> {
        let (mut end, mut sum) = (0, 0_u64);
        for (offset, length) in &pieces {
            if *offset < end {
                return None;
            }
            end = offset.checked_add(*length)?;
            sum = sum.checked_add(*length)?;
        }
        (end <= size && sum == stored).then_some(Self { pieces, size })
    }

    /// What stands at a position, given how many pieces are behind it; that number is brought forward.
    pub fn at(&self, position: u64, behind: &mut usize) -> Next {
        while let Some((offset, length)) = self.pieces.get(*behind) {
            if position < *offset {
                return Next::Zeros(offset - position);
            }
            if position < offset + length {
                return Next::Bytes(offset + length - position);
            }
            *behind += 1;
        }
        match self.size.saturating_sub(position) {
            0 => Next::End,
            left => Next::Zeros(left),
        }
    }
}

/// Offsets and lengths in turn, as pieces.
pub(super) fn pairs(map: &[u64]) -> Option<Vec<Piece>> {
    let (pairs, []) = map.as_chunks::<2>() else {
        return None;
    };
    (pairs.len() <= MAX_PIECES).then(|| pairs.iter().map(|[a, b]| (*a, *b)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_must_be_in_order_and_all_that_is_stored() {
        let cases: [(&[Piece], u64, u64, bool); 8] = [
            (&[(0, 2), (4, 2)], 8, 4, true),
            (&[(8, 0)], 8, 0, true),
            (&[], 8, 0, true),
            (&[(4, 2), (0, 2)], 8, 4, false),
            (&[(0, 4), (2, 2)], 8, 6, false),
            (&[(4, 8)], 8, 8, false),
            (&[(0, 2)], 8, 4, false),
            (&[(u64::MAX, 2)], u64::MAX, 2, false),
        ];
        for (pieces, size, stored, expected) in cases {
            let found = Pieces::sparse(pieces.to_vec(), size, stored);
            assert_eq!(found.is_some(), expected, "{pieces:?}");
        }
    }

    #[test]
    fn holes_and_pieces_follow_each_other_to_the_end() {
        let pieces = Pieces::sparse(vec![(2, 3), (5, 0), (7, 1)], 10, 4).unwrap();
        let (mut position, mut behind, mut found) = (0, 0, Vec::new());
        loop {
            let next = pieces.at(position, &mut behind);
            position += match next {
                Next::Zeros(count) | Next::Bytes(count) => count,
                Next::End => break,
            };
            found.push(next);
        }
        let expected = [
            Next::Zeros(2),
            Next::Bytes(3),
            Next::Zeros(2),
            Next::Bytes(1),
            Next::Zeros(2),
        ];
        assert_eq!(found, expected);
    }
}
