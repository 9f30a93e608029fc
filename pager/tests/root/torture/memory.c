/* Mappings, the heap, the data segment, stacks. */
#include "torture.h"

#include <fcntl.h>
#include <stdlib.h>

void mappings(struct piece *all, int count, uint64_t *random)
{
	struct piece *it = &all[draw(random) % count];
	if (it->at)
		check("mapping", it->at, it->bytes, it->seed);
	switch (it->at ? draw(random) % 8 : 7) {
	case 0: /* grows, perhaps elsewhere */ {
		size_t bytes = it->bytes + (1 + draw(random) % 16) * page;
		char *at = mremap(it->at, it->bytes, bytes, MREMAP_MAYMOVE);
		/* More than one mapping by now. */
		if (at == MAP_FAILED && errno == EFAULT)
			break;
		must(at != MAP_FAILED, "mremap to grow");
		check("grown", at, it->bytes, it->seed);
		zero("behind the grown", at + it->bytes, bytes - it->bytes);
		it->at = (void *)at, it->bytes = bytes;
		fill(it->at, it->bytes, it->seed);
		break;
	}
	case 1: /* moves to a place of our choice */ {
		char *at = map(it->bytes);
		fill(at, it->bytes, it->seed + 5);
		char *to = mremap(it->at, it->bytes, it->bytes, MREMAP_MAYMOVE | MREMAP_FIXED, at);
		if (to == MAP_FAILED && errno == EFAULT) {
			/* More than one mapping: from Linux 6.17 on the first can have moved, and another thread have mapped
			 * something where it was. So the rest stays, and nobody looks at it any more. */
			munmap(at, it->bytes);
			it->at = 0;
			break;
		}
		must(to == at, "mremap to move");
		it->at = (void *)at;
		check("moved", it->at, it->bytes, it->seed);
		break;
	}
	case 2: /* shrinks */
		if (it->bytes > 2 * page) {
			must(munmap((char *)it->at + it->bytes - page, page) == 0, "munmap");
			it->bytes -= page;
		}
		check("shrunk", it->at, it->bytes, it->seed);
		break;
	case 3: /* loses its content */ {
		must(madvise(it->at, it->bytes, MADV_DONTNEED) == 0, "madvise");
		zero("given up", it->at, it->bytes);
		fill(it->at, it->bytes, it->seed);
		break;
	}
	case 4: /* may lose its content, page by page */
		must(madvise(it->at, it->bytes, MADV_FREE) == 0, "madvise free");
		for (size_t i = 0; i < it->bytes / page; i++) {
			uint64_t *words = it->at + i * page / 8;
			if (words[0] == 0)
				zero("freed", words, page);
			else
				check("not yet freed", words, page, it->seed + i * page / 8);
		}
		fill(it->at, it->bytes, it->seed);
		break;
	case 5: /* is replaced in the middle */
		if (it->bytes > 3 * page) {
			char *at = (char *)it->at + page;
			must(mmap(at, page, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at, "mmap over");
			zero("new in the middle", at, page);
			fill(it->at, it->bytes, it->seed);
		}
		break;
	case 6: /* is protected for a while */
		must(mprotect(it->at, it->bytes, PROT_READ) == 0, "mprotect");
		check("protected", it->at, it->bytes, it->seed);
		must(mprotect(it->at, page, PROT_NONE) == 0, "mprotect none");
		must(mprotect(it->at, it->bytes, PROT_READ | PROT_WRITE) == 0, "mprotect back");
		check("unprotected", it->at, it->bytes, it->seed);
		break;
	default:
		if (it->at)
			must(munmap(it->at, it->bytes) == 0, "munmap");
		it->bytes = (1 + draw(random) % 64) * page;
		it->at = map(it->bytes);
		it->seed = draw(random);
		zero("new", it->at, it->bytes);
		if (draw(random) % 4 == 0)
			madvise(it->at, it->bytes, MADV_HUGEPAGE);
		fill(it->at, it->bytes, it->seed);
	}
}

void deep(int depth, uint64_t seed)
{
	uint64_t local[256];
	fill(local, sizeof local, seed);
	__asm__ volatile("" : : "r"(local) : "memory");
	if (depth)
		deep(depth - 1, mix(seed));
	check("stack", local, sizeof local, seed);
}

void heap(uint64_t *random)
{
	static __thread struct piece blocks[64];
	struct piece *it = &blocks[draw(random) % 64];
	if (it->at) {
		check("heap", it->at, it->bytes, it->seed);
		free(it->at);
	}
	it->bytes = (8 + draw(random) % 4000) * 8;
	it->seed = draw(random);
	it->at = malloc(it->bytes);
	fill(it->at, it->bytes, it->seed);
}

void locked(uint64_t *random)
{
	uint64_t seed = draw(random), *at = map(4 * page);
	fill(at, 4 * page, seed);
	int result = mlock(at, 2 * page);
	check("locked", at, 4 * page, seed);
	if (result == 0)
		munlock(at, page);
	check("half locked", at, 4 * page, seed);
	munmap(at, 4 * page);
}

/* Grows and shrinks what lies below the break. For a process with one thread that does not use malloc: both have
 * one break. */
void data_segment(uint64_t *random)
{
	static struct piece segment;

	if (!segment.at) {
		char *end = sbrk(0);

		must(sbrk(-(uintptr_t)end % page) != (void *)-1, "sbrk to a page");
		segment.at = sbrk(0);
		segment.seed = draw(random);
	}
	check("data segment", segment.at, segment.bytes, segment.seed);
	size_t bytes = draw(random) % 200 * page;
	must(sbrk((long)bytes - (long)segment.bytes) != (void *)-1, "sbrk");
	size_t both = bytes < segment.bytes ? bytes : segment.bytes;
	check("data segment of another size", segment.at, both, segment.seed);
	zero("new in the data segment", (char *)segment.at + both, bytes - both);
	segment.bytes = bytes;
	fill(segment.at, bytes, segment.seed);
}

/* Pages of a file of which some are changed, for this process alone. */
void file_mapping(uint64_t *random)
{
	static __thread struct piece own;
	static __thread int file;

	if (!own.at) {
		file = memfd_create("torture", MFD_CLOEXEC);
		own.bytes = 32 * page;
		own.seed = draw(random);
		must(file >= 0 && ftruncate(file, own.bytes) == 0, "memfd_create");
		uint64_t *shared =
			mmap(0, own.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
		must(shared != MAP_FAILED, "mmap shared");
		fill(shared, own.bytes, own.seed);
		munmap(shared, own.bytes);
		own.at = mmap(0, own.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
		must(own.at != MAP_FAILED, "mmap private");
	}
	size_t at = draw(random) % 32, words = page / 8;
	uint64_t seed = draw(random), *changed = own.at + at * words;
	fill(changed, page, seed);
	check("before what was changed", own.at, at * page, own.seed);
	check("changed page of a file", changed, page, seed);
	check("behind what was changed", changed + words, (31 - at) * page,
	      own.seed + (at + 1) * words);
	must(madvise(changed, page, MADV_DONTNEED) == 0, "madvise of a file");
	check("page of a file again", changed, page, own.seed + at * words);
}
