//! The contents of a simulated data area: one number per sector of 512 bytes, which names the
//! write that left it. Zero is zeroes. Pages that are all zeroes take no memory.

use std::rc::Rc;

/// Bytes of a sector: the grain at which a disk tears a write.
pub const SECTOR_BYTES: u64 = 512;
const PAGE_SECTORS: u64 = 128;
const ZEROES: [u64; PAGE_SECTORS as usize] = [0; PAGE_SECTORS as usize];

/// Contents on their way: one number per sector, `None` for zeroes.
pub type Payload = Option<Rc<[u64]>>;

/// The contents of a data area.
#[derive(Clone, Debug)]
pub struct Sectors {
    pages: Vec<Option<Box<[u64; PAGE_SECTORS as usize]>>>,
}

impl Sectors {
    /// All zeroes.
    pub fn new(bytes: u64) -> Self {
        let pages = bytes.div_ceil(PAGE_SECTORS * SECTOR_BYTES);
        Self { pages: vec![None; pages as usize] }
    }

    /// The area has at least so many bytes from now on.
    pub fn grow(&mut self, bytes: u64) {
        let pages = bytes.div_ceil(PAGE_SECTORS * SECTOR_BYTES) as usize;
        if pages > self.pages.len() {
            self.pages.resize(pages, None);
        }
    }

    /// One sector.
    pub fn get(&self, sector: u64) -> u64 {
        let page = &self.pages[(sector / PAGE_SECTORS) as usize];
        page.as_ref().map_or(0, |page| page[(sector % PAGE_SECTORS) as usize])
    }

    /// Changes one sector.
    pub fn set(&mut self, sector: u64, value: u64) {
        let page = &mut self.pages[(sector / PAGE_SECTORS) as usize];
        if page.is_none() && value == 0 {
            return;
        }
        let page = page.get_or_insert_with(|| Box::new([0; PAGE_SECTORS as usize]));
        page[(sector % PAGE_SECTORS) as usize] = value;
    }

    /// Reads `count` sectors; `None` when all are zeroes.
    pub fn read(&self, first: u64, count: u64) -> Payload {
        let mut all_zero = true;
        let mut at = first;
        while at < first + count {
            let page_end = (at / PAGE_SECTORS + 1) * PAGE_SECTORS;
            if self.pages[(at / PAGE_SECTORS) as usize].is_some() {
                let end = page_end.min(first + count);
                all_zero &= (at..end).all(|sector| self.get(sector) == 0);
            }
            at = page_end;
        }
        (!all_zero).then(|| (first..first + count).map(|sector| self.get(sector)).collect())
    }

    /// Writes `count` sectors.
    pub fn write(&mut self, first: u64, count: u64, payload: &Payload) {
        match payload {
            Some(values) => {
                for (at, &value) in values.iter().take(count as usize).enumerate() {
                    self.set(first + at as u64, value);
                }
            }
            None => {
                let mut at = first;
                while at < first + count {
                    if at.is_multiple_of(PAGE_SECTORS) && at + PAGE_SECTORS <= first + count {
                        self.pages[(at / PAGE_SECTORS) as usize] = None;
                        at += PAGE_SECTORS;
                    } else {
                        self.set(at, 0);
                        at += 1;
                    }
                }
            }
        }
    }

    /// The sectors in which two areas differ.
    pub fn differences(&self, other: &Self) -> Vec<u64> {
        let mut found = Vec::new();
        for (number, (one, two)) in self.pages.iter().zip(&other.pages).enumerate() {
            if one == two {
                continue;
            }
            let first = number as u64 * PAGE_SECTORS;
            let [one, two] = [one, two].map(|page| page.as_deref().unwrap_or(&ZEROES));
            let sectors = (first..).zip(one.iter().zip(two));
            found.extend(sectors.filter(|(_, (one, two))| one != two).map(|(sector, _)| sector));
        }
        found
    }
}
