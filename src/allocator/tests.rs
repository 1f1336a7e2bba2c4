//! The allocator over a source that looks at each block that comes back, beside a model of what it holds.

use std::collections::BTreeMap;
use std::slice;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const MIB: usize = 1 << 20;
/// So many blocks of a MiB are all that is kept.
const MANY: usize = MOST_KEPT / MIB;

/// The system, watched: nothing comes back that it did not give, in another size than it gave, or with anything in it.
#[derive(Default)]
struct Watched {
    given: Mutex<BTreeMap<usize, Layout>>,
    /// It has nothing left.
    empty: AtomicBool,
    /// It refuses to make mappings larger or smaller.
    fixed: AtomicBool,
}

/// What a mapping is noted as.
fn mapping(bytes: usize) -> Layout {
    Layout::from_size_align(bytes, PAGE).unwrap()
}

impl Watched {
    fn given(&self) -> MutexGuard<'_, BTreeMap<usize, Layout>> {
        self.given.lock().unwrap()
    }

    fn note(&self, block: *mut u8, layout: Layout) -> *mut u8 {
        assert!(!block.is_null());
        assert_eq!(self.given().insert(block.addr(), layout), None);
        block
    }

    fn strike(&self, block: *mut u8, layout: Layout) {
        assert_eq!(self.given().remove(&block.addr()), Some(layout), "it did not give that");
    }

    fn is_empty(&self) -> bool {
        self.empty.load(Ordering::Relaxed)
    }
}

unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if self.is_empty() {
            return ptr::null_mut();
        }
        unsafe {
            let block = System.alloc(layout);
            block.write_bytes(0xdd, layout.size());
            self.note(block, layout)
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if self.is_empty() { ptr::null_mut() } else { self.note(unsafe { System.alloc_zeroed(layout) }, layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        assert!(unsafe { all(block, layout.size(), 0) }, "{layout:?} comes back with something in it");
        self.strike(block, layout);
        unsafe { System.dealloc(block, layout) };
    }

    unsafe fn realloc(&self, _: *mut u8, _: Layout, _: usize) -> *mut u8 {
        unreachable!("the system's realloc leaves the old bytes behind");
    }
}

unsafe impl Source for Watched {
    unsafe fn map(&self, bytes: usize) -> *mut u8 {
        if self.is_empty() { ptr::null_mut() } else { self.note(unsafe { System.map(bytes) }, mapping(bytes)) }
    }

    unsafe fn remap(&self, block: *mut u8, from: usize, to: usize) -> *mut u8 {
        assert!(to > from || unsafe { all(block.add(to), from - to, 0) }, "the end comes back with something in it");
        self.strike(block, mapping(from));
        if self.is_empty() || self.fixed.load(Ordering::Relaxed) {
            // Whoever made it smaller keeps what is left of it, and whoever wanted more keeps all.
            self.note(block, mapping(from.min(to)));
            return ptr::null_mut();
        }
        self.note(unsafe { System.remap(block, from, to) }, mapping(to))
    }

    unsafe fn unmap(&self, block: *mut u8, bytes: usize) {
        assert!(unsafe { all(block, bytes, 0) }, "{bytes} bytes come back with something in them");
        self.strike(block, mapping(bytes));
        unsafe { System.unmap(block, bytes) };
    }
}

/// Whether each of these bytes is this one. By memcmp: in a test's build, a loop over some MiB takes its time.
unsafe fn all(block: *const u8, bytes: usize, byte: u8) -> bool {
    let bytes = unsafe { slice::from_raw_parts(block, bytes) };
    bytes.is_empty() || bytes[0] == byte && bytes[1..] == bytes[..bytes.len() - 1]
}

/// A block in use, filled with one byte.
struct Block {
    at: *mut u8,
    layout: Layout,
    byte: u8,
}

// SAFETY: whoever has it may use the memory, on any thread.
unsafe impl Send for Block {}

impl Block {
    /// Takes one, checks what was promised of it, and fills it.
    fn new(allocator: &Allocator<Watched>, layout: Layout, zeroed: bool, byte: u8) -> Block {
        let at = unsafe { if zeroed { allocator.alloc_zeroed(layout) } else { allocator.alloc(layout) } };
        assert!(!at.is_null() && at.addr().is_multiple_of(layout.align()), "{at:?} for {layout:?}");
        assert!(!zeroed || unsafe { all(at, layout.size(), 0) }, "{layout:?} was to be zero");
        unsafe { at.write_bytes(byte, layout.size()) };
        let block = Block { at, layout, byte };
        block.holds();
        block
    }

    fn of(allocator: &Allocator<Watched>, bytes: usize) -> Block {
        Block::new(allocator, Layout::from_size_align(bytes, 8).unwrap(), false, 0x5a)
    }

    /// What it was filled with is there, and of a class's block the rest is zero.
    fn holds(&self) {
        let Block { at, layout, byte } = *self;
        assert!(unsafe { all(at, layout.size(), byte) }, "{layout:?} no longer holds what was written");
        if let Place::Class(class) = place_of(layout) {
            assert!(unsafe { all(at.add(layout.size()), bytes_of(class) - layout.size(), 0) }, "{layout:?} has a rest");
        }
    }

    fn resize(self, allocator: &Allocator<Watched>, bytes: usize) -> Block {
        self.holds();
        let at = unsafe { allocator.realloc(self.at, self.layout, bytes) };
        let layout = Layout::from_size_align(bytes, self.layout.align()).unwrap();
        assert!(!at.is_null() && at.addr().is_multiple_of(layout.align()), "{at:?} for {layout:?}");
        assert!(unsafe { all(at, bytes.min(self.layout.size()), self.byte) }, "{:?} to {bytes}", self.layout);
        unsafe { at.write_bytes(self.byte, bytes) };
        let block = Block { at, layout, byte: self.byte };
        block.holds();
        block
    }

    fn free(self, allocator: &Allocator<Watched>) {
        self.holds();
        unsafe { allocator.dealloc(self.at, self.layout) };
    }
}

fn watched() -> Allocator<Watched> {
    Allocator::over(Watched::default())
}

impl Allocator<Watched> {
    fn kept(&self) -> usize {
        self.kept.load(Ordering::Relaxed)
    }

    /// The kept blocks, each all zero but for its link, and no more than there may be.
    fn kept_blocks(&self) -> usize {
        let (mut blocks, mut bytes) = (0, 0);
        for class in 0..CLASSES {
            let list = self.list(class);
            let (mut next, mut length) = (list.first, 0);
            while !next.is_null() {
                let link = size_of::<Kept>();
                assert!(unsafe { all(next.cast::<u8>().add(link), bytes_of(class) - link, 0) }, "class {class}");
                next = unsafe { (*next).next };
                length += 1;
            }
            assert!(length == list.blocks && list.fewest <= length, "class {class}");
            blocks += length;
            bytes += length * bytes_of(class);
        }
        assert!(bytes == self.kept() && bytes <= MOST_KEPT, "{bytes} bytes, counted {}", self.kept());
        blocks
    }

    /// Nothing is in use: whatever is kept goes back.
    fn gives_all_back(&self) {
        self.trim();
        self.trim();
        assert_eq!((self.kept_blocks(), self.kept(), self.source.given().len()), (0, 0, 0));
    }
}

#[test]
fn each_size_has_a_class_that_holds_it_and_is_a_quarter_larger_at_most() {
    let mut all = (SMALL + 1..=LARGEST).step_by(if cfg!(miri) { 4093 } else { 1 });
    assert!(all.all(|bytes| bytes <= bytes_of(class_of(bytes)) && 4 * bytes_of(class_of(bytes)) <= 5 * bytes));
    assert_eq!((class_of(SMALL + 1), bytes_of(0)), (0, 3072));
    assert_eq!((class_of(LARGEST), bytes_of(CLASSES - 1)), (CLASSES - 1, LARGEST));
    for class in 1..CLASSES {
        assert_eq!(class_of(bytes_of(class)), class);
        assert_eq!(class_of(bytes_of(class - 1) + 1), class);
    }
}

#[test]
fn a_block_belongs_to_a_class_or_a_mapping_by_its_size_unless_it_wants_to_be_aligned_beyond_it() {
    let place = |bytes, align| place_of(Layout::from_size_align(bytes, align).unwrap());
    assert_eq!(place(SMALL, 8), Place::System);
    assert_eq!(place(SMALL + 1, 16), Place::Class(0));
    assert_eq!(place(SMALL + 1, 32), Place::System);
    assert_eq!(place(LARGEST, 1), Place::Class(CLASSES - 1));
    assert_eq!(place(LARGEST + 1, 4096), Place::Mapping);
    assert_eq!(place(LARGEST + 1, 8192), Place::System);
}

#[test]
fn what_was_freed_comes_again_wiped_to_whoever_needs_its_size() {
    let allocator = watched();
    let block = Block::of(&allocator, 70_000);
    let at = block.at;
    block.free(&allocator);
    assert_eq!(allocator.kept_blocks(), 1);
    let layout = Layout::from_size_align(72_000, 1).unwrap();
    let again = Block::new(&allocator, layout, true, 1);
    assert_eq!((again.at, allocator.kept_blocks()), (at, 0));
    again.free(&allocator);
    allocator.gives_all_back();
}

#[test]
fn within_its_class_a_block_stays_where_it_is() {
    let allocator = watched();
    let block = Block::of(&allocator, 4097);
    let at = block.at;
    let block = block.resize(&allocator, 5120).resize(&allocator, 4100).resize(&allocator, 5000);
    assert_eq!(block.at, at);
    let block = block.resize(&allocator, 5121);
    assert_ne!(block.at, at);
    block.free(&allocator);
    allocator.gives_all_back();
}

#[test]
fn a_block_that_moves_takes_its_content_along_and_leaves_nothing_behind() {
    let allocator = watched();
    let mut block = Block::of(&allocator, 1);
    for bytes in [2000, 3000, 300_000, LARGEST, LARGEST + 1, 2 * LARGEST, LARGEST + 1, LARGEST, 3000, 10] {
        block = block.resize(&allocator, bytes);
    }
    block.free(&allocator);
    allocator.gives_all_back();
}

#[test]
fn a_mapping_that_cannot_be_changed_is_copied_and_wiped_or_stays_larger_than_it_need_be() {
    let allocator = watched();
    allocator.source.fixed.store(true, Ordering::Relaxed);
    let block = Block::of(&allocator, LARGEST + 1);
    let at = block.at;
    let mut block = block.resize(&allocator, 3 * LARGEST);
    assert_ne!(block.at, at);
    // Miri knows mappings only as a whole.
    if !cfg!(miri) {
        let at = block.at;
        block = block.resize(&allocator, 2 * LARGEST);
        assert_eq!(block.at, at);
    }
    block.free(&allocator);
    allocator.gives_all_back();
}

#[test]
fn where_the_system_has_nothing_left_a_block_that_was_to_grow_is_as_it_was() {
    let allocator = watched();
    let blocks = [100, 3000, LARGEST, LARGEST + 1].map(|bytes| Block::of(&allocator, bytes));
    allocator.source.empty.store(true, Ordering::Relaxed);
    for block in blocks {
        let null = unsafe { allocator.realloc(block.at, block.layout, 2 * block.layout.size()) };
        assert!(null.is_null());
        block.free(&allocator);
    }
    for bytes in [100, LARGEST - LARGEST / 8, LARGEST + 1] {
        let layout = Layout::from_size_align(bytes, 8).unwrap();
        assert!(unsafe { allocator.alloc(layout).is_null() && allocator.alloc_zeroed(layout).is_null() });
    }
    // What is kept is there even then.
    Block::of(&allocator, LARGEST).free(&allocator);
    allocator.gives_all_back();
}

#[test]
fn no_more_is_kept_than_the_bound() {
    let allocator = watched();
    let blocks: Vec<_> = (0..MANY + 9).map(|_| Block::of(&allocator, MIB)).collect();
    blocks.into_iter().for_each(|block| block.free(&allocator));
    assert_eq!((allocator.kept_blocks(), allocator.kept()), (MANY, MOST_KEPT));
    Block::of(&allocator, 3000).free(&allocator);
    assert_eq!(allocator.kept_blocks(), MANY);
    allocator.gives_all_back();
}

#[test]
fn trimming_gives_back_what_was_not_needed_since_the_last_time_and_keeps_the_rest() {
    let allocator = watched();
    let use_at_once = |blocks: usize| {
        let blocks: Vec<_> = (0..blocks).map(|_| Block::of(&allocator, 10_000)).collect();
        blocks.into_iter().for_each(|block| block.free(&allocator));
    };
    use_at_once(5);
    allocator.trim();
    assert_eq!(allocator.kept_blocks(), 5, "all were needed");
    use_at_once(2);
    allocator.trim();
    assert_eq!(allocator.kept_blocks(), 2, "two were needed");
    use_at_once(3);
    allocator.trim();
    assert_eq!(allocator.kept_blocks(), 3, "three were needed, one of them was not there");
    allocator.trim();
    assert_eq!((allocator.kept_blocks(), allocator.source.given().len()), (0, 0), "none was needed");
}

#[test]
fn blocks_of_a_size_that_nobody_needs_any_more_make_room_for_another_without_a_trim() {
    let allocator = watched();
    let blocks: Vec<_> = (0..MANY).map(|_| Block::of(&allocator, MIB)).collect();
    blocks.into_iter().for_each(|block| block.free(&allocator));
    for _ in 0..2 * PATIENCE {
        assert_eq!(allocator.kept(), MOST_KEPT);
        Block::of(&allocator, 3000).free(&allocator);
    }
    Block::of(&allocator, 3000).free(&allocator);
    assert_eq!((allocator.kept_blocks(), allocator.kept()), (1, 3072));
    allocator.gives_all_back();
}

/// One thing that a program does to its blocks. Which block, is a number to be taken modulo how many there are.
#[derive(Clone, Debug)]
enum Step {
    Take { bytes: usize, align: usize, zeroed: bool },
    Resize { which: usize, bytes: usize },
    Free { which: usize },
    Trim,
}

fn sizes() -> impl Strategy<Value = usize> {
    let largest = if cfg!(miri) { 16 } else { CLASSES };
    prop_oneof![
        4 => 1..SMALL + 2,
        6 => (0..largest, 0..3usize).prop_map(|(class, more)| bytes_of(class) - 1 + more),
        3 => SMALL..100_000usize,
        if cfg!(miri) { 0 } else { 1 } => LARGEST - 5000..2 * LARGEST,
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let align = prop_oneof![8 => 0..5u32, 1 => 5..14u32].prop_map(|power| 1 << power);
    let take = (sizes(), align, any::<bool>());
    let take = take.prop_map(|(bytes, align, zeroed)| Step::Take { bytes, align, zeroed });
    let resize = (any::<usize>(), sizes()).prop_map(|(which, bytes)| Step::Resize { which, bytes });
    let free = any::<usize>().prop_map(|which| Step::Free { which });
    vec(prop_oneof![5 => take, 4 => resize, 4 => free, 1 => Just(Step::Trim)], 1..if cfg!(miri) { 30 } else { 150 })
}

fn overlap(a: &Block, b: &Block) -> bool {
    a.at.addr() < b.at.addr() + b.layout.size() && b.at.addr() < a.at.addr() + a.layout.size()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 8 } else { 64 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_is_taken_resized_and_freed_each_block_keeps_its_content_and_none_comes_back_with_any(
        steps in steps()
    ) {
        let allocator = watched();
        let mut blocks: Vec<Block> = Vec::new();
        for (i, step) in steps.into_iter().enumerate() {
            let block = match step {
                Step::Take { bytes, align, zeroed } => {
                    let layout = Layout::from_size_align(bytes, align).unwrap();
                    Some(Block::new(&allocator, layout, zeroed, i.to_le_bytes()[0] | 1))
                }
                Step::Resize { which, bytes } if !blocks.is_empty() => {
                    let block = blocks.swap_remove(which % blocks.len());
                    Some(block.resize(&allocator, bytes))
                }
                Step::Free { which } if !blocks.is_empty() => {
                    blocks.swap_remove(which % blocks.len()).free(&allocator);
                    None
                }
                Step::Trim => {
                    allocator.trim();
                    None
                }
                _ => None,
            };
            if let Some(block) = block {
                assert!(!blocks.iter().any(|other| overlap(other, &block)));
                blocks.push(block);
            }
            assert_eq!(blocks.len() + allocator.kept_blocks(), allocator.source.given().len());
        }
        blocks.into_iter().for_each(|block| block.free(&allocator));
        allocator.gives_all_back();
    }
}

/// Numbers that look random: Marsaglia's xorshift64.
struct Numbers(usize);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    /// A size of any magnitude up to 32 KiB.
    fn bytes(&mut self) -> usize {
        let power = self.below(if cfg!(miri) { 13 } else { 15 });
        (1 << power) + self.below(1 << power)
    }
}

#[test]
fn threads_that_take_free_and_hand_on_blocks_while_another_trims_never_share_one() {
    const THREADS: usize = 8;
    let rounds = if cfg!(miri) { 60 } else { 4000 };
    let allocator = &watched();
    let (to, from): (Vec<Sender<Block>>, Vec<Receiver<Block>>) = (0..THREADS).map(|_| channel()).unzip();
    let work = |i: usize, from: &Receiver<Block>, next: &Sender<Block>| {
        let mut numbers = Numbers(i + 1);
        for _ in 0..rounds {
            let layout = Layout::from_size_align(numbers.bytes(), 8).unwrap();
            let mut block = Block::new(allocator, layout, numbers.below(2) == 0, i.to_le_bytes()[0] + 1);
            if numbers.below(2) == 0 {
                block = block.resize(allocator, numbers.bytes());
            }
            next.send(block).unwrap();
            from.try_iter().for_each(|block| block.free(allocator));
            if numbers.below(100) == 0 {
                allocator.trim();
            }
        }
    };
    let left: Vec<Receiver<Block>> = thread::scope(|scope| {
        let threads = from.into_iter().enumerate().map(|(i, from)| {
            let next = to[(i + 1) % THREADS].clone();
            scope.spawn(move || {
                work(i, &from, &next);
                from
            })
        });
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    left.iter().flat_map(Receiver::try_iter).for_each(|block| block.free(allocator));
    allocator.gives_all_back();
}
