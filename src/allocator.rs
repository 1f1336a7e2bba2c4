//! The daemon's allocator: it wipes each block before it is freed, and keeps some wiped blocks for whoever needs one next.
//!
//! Whatever passed through the heap, keys and plaintext and every copy that a library made of them, is gone as soon as
//! it is freed: [`Allocator`] overwrites a block with zeros before anybody else can have it, and so the part that a
//! block gives up when it shrinks. A block that has to move is copied and wiped here; the system's realloc would leave
//! its old bytes behind.
//!
//! A request needs the same large buffers as the one before. Fetched from the system they cost a mapping, a page fault
//! for each 4 KiB, and an unmapping, and a kernel that clears pages when they are handed out and again when they come
//! back (the enclave's does) doubles that. So wiped blocks are kept in a free list for each size class. They are zero,
//! which makes `alloc_zeroed` free.
//!
//! | bytes asked for | come from | when freed |
//! |---|---|---|
//! | up to 2,560 | the system's allocator, as they are | wiped, given back |
//! | up to 4 MiB | a free list, else the system's allocator, rounded up to the size class | wiped, kept while there is room |
//! | more | a mapping of their own, which grows and shrinks by mremap(2) | wiped, unmapped |
//!
//! Blocks aligned to more than 16 bytes (a mapping: 4,096) are treated like small ones, whatever their size.
//!
//! # What it costs in memory
//! - There are four size classes in each power of two. A block is at most a quarter larger than asked for, 9 % on
//!   average; what the system's allocator adds comes on top, as it would without this one. Blocks of more than 4 MiB are
//!   as large as asked for, in whole pages. [`crate::memory`] counts bytes as asked for.
//! - At most [`MOST_KEPT`] bytes are kept. [`Allocator::trim`] gives back what was not needed since it was last called,
//!   so an idle daemon keeps nothing from the second call on.
//!
//! # Threads
//! Each size class has its own lock, held for a few instructions and never while the system is asked for anything. The
//! locks are the standard library's, which neither allocate nor panic.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::libc;

/// Bytes that are kept for later, at most, in all size classes together.
pub const MOST_KEPT: usize = 8 << 20;

/// The largest block, in bytes, that the system's allocator is left to handle by itself.
const SMALL: usize = 2560;
/// The largest block, in bytes, that may be kept. A larger one is mapped for itself.
pub(crate) const LARGEST: usize = 4 << 20;
/// The alignment, in bytes, of a block that may be kept: malloc's on 64-bit machines.
const ALIGN: usize = 16;
/// The alignment, in bytes, of a mapping: the smallest page of any machine.
const PAGE: usize = 4096;
const CLASSES: usize = class_of(LARGEST) + 1;
/// So many blocks find no room, then the lists are trimmed: they may hold sizes that nobody needs any more.
const PATIENCE: usize = 64;

/// The size class of a block of this many bytes, more than [`SMALL`] and at most [`LARGEST`].
const fn class_of(bytes: usize) -> usize {
    let last = bytes - 1;
    let power = last.ilog2() as usize;
    let quarter = last >> (power - 2) & 3;
    // The first class is the second quarter above 2^11.
    4 * (power - 11) + quarter - 1
}

/// The bytes of each block of a size class.
const fn bytes_of(class: usize) -> usize {
    let quarters = class + 1;
    (5 + quarters % 4) << (9 + quarters / 4)
}

/// Where a block is kept, mapped, or left to the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    System,
    Class(usize),
    Mapping,
}

/// Where a block belongs. It depends on nothing but the layout, as `dealloc` knows nothing else of a block.
const fn place_of(layout: Layout) -> Place {
    let (bytes, align) = (layout.size(), layout.align());
    if bytes > LARGEST && align <= PAGE {
        Place::Mapping
    } else if bytes > SMALL && bytes <= LARGEST && align <= ALIGN {
        Place::Class(class_of(bytes))
    } else {
        Place::System
    }
}

/// What the system's allocator is asked for, for a block of a size class.
const fn layout_of(class: usize) -> Layout {
    match Layout::from_size_align(bytes_of(class), ALIGN) {
        Ok(layout) => layout,
        Err(_) => unreachable!(),
    }
}

/// Where memory comes from and goes back to: the system, unless a test watches.
///
/// # Safety
/// `map` and `remap` give null, or so many bytes that belong to nobody else, all zero but for what `remap` takes along.
pub unsafe trait Source: GlobalAlloc {
    /// Maps this many bytes, which are zero.
    ///
    /// # Safety
    /// There is at least one.
    unsafe fn map(&self, bytes: usize) -> *mut u8;

    /// Makes a mapping larger or smaller, where it is or elsewhere, and leaves no copy behind. If it gives null, nothing
    /// has changed.
    ///
    /// # Safety
    /// The mapping is of this source and has `from` bytes. Both lengths are at least one.
    unsafe fn remap(&self, block: *mut u8, from: usize, to: usize) -> *mut u8;

    /// Unmaps it.
    ///
    /// # Safety
    /// The mapping is of this source, has this many bytes, and is no longer used.
    unsafe fn unmap(&self, block: *mut u8, bytes: usize);
}

/// The kernel counts mappings in pages, which may be larger ones than these; then it rounds up once more.
const fn whole_pages(bytes: usize) -> usize {
    bytes.next_multiple_of(PAGE)
}

fn unless_failed(mapped: *mut libc::c_void) -> *mut u8 {
    if mapped == libc::MAP_FAILED { ptr::null_mut() } else { mapped.cast() }
}

// SAFETY: an anonymous mapping is new and zero, and so is what mremap(2) adds to one; both calls fail with MAP_FAILED.
unsafe impl Source for System {
    unsafe fn map(&self, bytes: usize) -> *mut u8 {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: without an address of the caller's choice, nothing that is mapped already is touched.
        unless_failed(unsafe { libc::mmap(ptr::null_mut(), whole_pages(bytes), protection, flags, -1, 0) })
    }

    unsafe fn remap(&self, block: *mut u8, from: usize, to: usize) -> *mut u8 {
        // SAFETY: the caller's mapping, whole.
        let mapped = unsafe { libc::mremap(block.cast(), whole_pages(from), whole_pages(to), libc::MREMAP_MAYMOVE) };
        unless_failed(mapped)
    }

    unsafe fn unmap(&self, block: *mut u8, bytes: usize) {
        // SAFETY: the caller's mapping, whole, which nobody uses. If it fails, the mapping stays, wiped and unused.
        unsafe { libc::munmap(block.cast(), whole_pages(bytes)) };
    }
}

/// Overwrites it with zeros, whether or not anybody will read them.
///
/// # Safety
/// So many bytes may be written there.
unsafe fn wipe(block: *mut u8, bytes: usize) {
    // SAFETY: by the caller's word.
    unsafe { block.write_bytes(0, bytes) };
    // The compiler has to believe that this reads what `block` points to, so that the zeros have to be there. Without
    // it they may be left out: nobody reads a block that is freed.
    // SAFETY: there is no instruction in it.
    #[cfg(not(miri))]
    unsafe {
        std::arch::asm!("/* {0} */", in(reg) block, options(nostack, preserves_flags));
    }
}

/// The beginning of a kept block. All that follows is zero.
struct Kept {
    next: *mut Kept,
}

/// The kept blocks of one size class.
struct FreeList {
    first: *mut Kept,
    blocks: usize,
    /// The fewest blocks since the last trim: this many were not needed.
    fewest: usize,
}

// SAFETY: a list owns its blocks. Nothing of them depends on the thread.
unsafe impl Send for FreeList {}

impl FreeList {
    const EMPTY: FreeList = FreeList { first: ptr::null_mut(), blocks: 0, fewest: 0 };
}

/// A global allocator that wipes what is freed and keeps a bounded part of it; see [the module](self).
///
/// For a block of a size class, whoever holds it, the bytes past those that were asked for are zero. So they need no
/// wiping, and a block can grow to its class's size where it is.
pub struct Allocator<S = System> {
    source: S,
    lists: [Mutex<FreeList>; CLASSES],
    /// Bytes in all lists, and those on the way in or out.
    kept: AtomicUsize,
    /// How many blocks found no room.
    refused: AtomicUsize,
}

impl Allocator {
    /// Keeps nothing yet.
    pub const fn new() -> Allocator {
        Allocator::over(System)
    }
}

impl Default for Allocator {
    fn default() -> Allocator {
        Allocator::new()
    }
}

impl<S> Allocator<S> {
    const fn over(source: S) -> Allocator<S> {
        let lists = [const { Mutex::new(FreeList::EMPTY) }; CLASSES];
        Allocator { source, lists, kept: AtomicUsize::new(0), refused: AtomicUsize::new(0) }
    }

    fn list(&self, class: usize) -> MutexGuard<'_, FreeList> {
        self.lists[class].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A kept block of this class, all zero; null if there is none.
    fn take(&self, class: usize) -> *mut u8 {
        let mut list = self.list(class);
        let block = list.first;
        if block.is_null() {
            return ptr::null_mut();
        }
        // SAFETY: a block that is in the list belongs to the list, and begins with what `keep` wrote. With the list
        // locked, nobody else takes it.
        let next = unsafe { ptr::replace(&raw mut (*block).next, ptr::null_mut()) };
        list.first = next;
        list.blocks -= 1;
        list.fewest = list.fewest.min(list.blocks);
        drop(list);
        self.kept.fetch_sub(bytes_of(class), Ordering::Relaxed);
        block.cast()
    }
}

impl<S: Source> Allocator<S> {
    /// Gives back to the system what has been kept and not needed since the last call.
    pub fn trim(&self) {
        for class in 0..CLASSES {
            let idle = self.list(class).fewest;
            for _ in 0..idle {
                let block = self.take(class);
                if block.is_null() {
                    break;
                }
                // SAFETY: `take` gave it to us alone. It is of the source, and of this layout.
                unsafe { self.source.dealloc(block, layout_of(class)) };
            }
            let mut list = self.list(class);
            list.fewest = list.blocks;
        }
    }

    /// Keeps a block, or gives it back where there is no room.
    ///
    /// # Safety
    /// The block is of the source, of this class, all zero, and not used any more.
    unsafe fn keep(&self, class: usize, block: *mut u8) {
        let bytes = bytes_of(class);
        // Counted before it is in the list, and until after it is out: no more is ever kept than is counted.
        if self.kept.fetch_add(bytes, Ordering::Relaxed) + bytes > MOST_KEPT {
            self.kept.fetch_sub(bytes, Ordering::Relaxed);
            // SAFETY: by the caller's word.
            unsafe { self.source.dealloc(block, layout_of(class)) };
            if self.refused.fetch_add(1, Ordering::Relaxed) % PATIENCE == PATIENCE - 1 {
                self.trim();
            }
            return;
        }
        let mut list = self.list(class);
        let kept = block.cast();
        // SAFETY: the block is ours, aligned for a pointer, and larger than one.
        unsafe { ptr::write(kept, Kept { next: list.first }) };
        list.first = kept;
        list.blocks += 1;
    }

    /// Makes another block of it: copies, and wipes the first.
    ///
    /// # Safety
    /// As for [`GlobalAlloc::realloc`]; `to` is the new layout.
    unsafe fn move_to(&self, block: *mut u8, from: Layout, to: Layout) -> *mut u8 {
        // SAFETY: the caller's layouts are not of zero bytes. The new block is another one, and both have as many bytes
        // as are copied. Only then the old one is given up.
        unsafe {
            let new = self.alloc(to);
            if !new.is_null() {
                ptr::copy_nonoverlapping(block, new, from.size().min(to.size()));
                self.dealloc(block, from);
            }
            new
        }
    }

    /// Makes a mapping larger or smaller.
    ///
    /// # Safety
    /// As for [`GlobalAlloc::realloc`]; both layouts belong to [`Place::Mapping`].
    unsafe fn resize_mapping(&self, block: *mut u8, from: Layout, to: Layout) -> *mut u8 {
        let (old, new) = (from.size(), to.size());
        // SAFETY: the block is a mapping of the source of `old` bytes.
        unsafe {
            if new < old {
                wipe(block.add(new), old - new);
            }
            let mapped = self.source.remap(block, old, new);
            if !mapped.is_null() {
                mapped
            } else if new < old {
                // A kernel that will not take the end back leaves it where it is, wiped.
                block
            } else {
                self.move_to(block, from, to)
            }
        }
    }
}

// SAFETY: a block comes from the source or from a list, in which it is once and from which it is taken under a lock, so
// no two that are in use overlap. By its layout alone, which the caller gives again, it goes back to where it came
// from, in the size that it has there: `place_of` gives the same place for both, and `layout_of` and the mapping's
// length the same size. A class's blocks are aligned to `ALIGN`, mappings to `PAGE`, which is as much as `place_of` lets
// them be asked for, and all others as the source aligns them. Nothing here panics: a class is less than `CLASSES`.
unsafe impl<S: Source> GlobalAlloc for Allocator<S> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match place_of(layout) {
            // SAFETY: the caller's layout, which is not of zero bytes.
            Place::System => unsafe { self.source.alloc(layout) },
            // SAFETY: likewise. These blocks are zero in any case.
            Place::Class(_) | Place::Mapping => unsafe { self.alloc_zeroed(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match place_of(layout) {
            // SAFETY: the caller's layout, which is not of zero bytes.
            Place::System => unsafe { self.source.alloc_zeroed(layout) },
            Place::Class(class) => {
                let block = self.take(class);
                if !block.is_null() {
                    return block;
                }
                // SAFETY: a class has more than zero bytes.
                unsafe { self.source.alloc_zeroed(layout_of(class)) }
            }
            // SAFETY: it is more than `LARGEST`.
            Place::Mapping => unsafe { self.source.map(layout.size()) },
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the block is the caller's, of this layout, and now ours. What a class's block has past it is zero
        // already.
        unsafe {
            wipe(block, layout.size());
            match place_of(layout) {
                Place::System => self.source.dealloc(block, layout),
                Place::Class(class) => self.keep(class, block),
                Place::Mapping => self.source.unmap(block, layout.size()),
            }
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new: usize) -> *mut u8 {
        // SAFETY: the caller keeps to the bounds of a layout. `block` is of `layout`; within a class it has the bytes
        // from `new` on that are wiped.
        unsafe {
            let to = Layout::from_size_align_unchecked(new, layout.align());
            match (place_of(layout), place_of(to)) {
                (Place::Class(old), Place::Class(class)) if old == class => {
                    if new < layout.size() {
                        wipe(block.add(new), layout.size() - new);
                    }
                    block
                }
                (Place::Mapping, Place::Mapping) => self.resize_mapping(block, layout, to),
                _ => self.move_to(block, layout, to),
            }
        }
    }
}

#[cfg(test)]
mod tests;
