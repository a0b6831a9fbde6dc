// SPDX-License-Identifier: Apache-2.0

package state

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"os"
)

// bbolt trusts the pages of its file: one that is damaged ends in a panic, in a fault of memory, or in a loop without
// end, and so does bbolt's own check. Before it walks a file this looks whether its pages are a tree, by the format
// that every bbolt writes (version 2): a header of id, flags, number of elements and of pages that follow, then the
// elements, each with the place of its key and value.

const (
	pageHeader = 16
	metaSize   = 64
	magic      = 0xED0CDAED
	noFreelist = ^uint64(0)

	flagBranch   = 0x01
	flagLeaf     = 0x02
	flagFreelist = 0x10
	flagBucket   = 0x01 // of an element of a leaf
)

var le = binary.NativeEndian // as bbolt writes it

// pages is a file while it is looked at.
type pages struct {
	data  []byte
	size  uint64 // of a page
	count uint64 // of those in use
	seen  map[uint64]bool
}

// examinePages refuses a file whose pages are no tree, or of which some are missing.
func examinePages(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	root, freelist, p := current(data)
	if p == nil {
		return nil // bbolt finds no beginning either, and says so
	}
	if need := p.count * p.size; uint64(len(data)) < need {
		return fmt.Errorf("%w: %d bytes of %d are left", ErrDamaged, len(data), need)
	}
	if err := p.tree(root); err != nil {
		return err
	}
	if freelist == noFreelist {
		return nil
	}
	return p.free(freelist)
}

// current reads the meta page of the last transaction that was completed, as bbolt chooses it.
func current(data []byte) (root, freelist uint64, p *pages) {
	var last uint64
	size := uint64(os.Getpagesize())
	for _, at := range []uint64{0, size} {
		if uint64(len(data)) < at+pageHeader+metaSize {
			break
		}
		m := data[at+pageHeader:][:metaSize]
		sum := fnv.New64a()
		_, _ = sum.Write(m[:metaSize-8]) // a hash takes all
		if le.Uint32(m) != magic || le.Uint64(m[metaSize-8:]) != sum.Sum64() || uint64(le.Uint32(m[8:])) != size {
			continue
		}
		if tx := le.Uint64(m[48:]); p == nil || tx > last {
			last, root, freelist = tx, le.Uint64(m[16:]), le.Uint64(m[32:])
			p = &pages{data: data, size: size, count: le.Uint64(m[40:]), seen: map[uint64]bool{}}
		}
	}
	return root, freelist, p
}

// page takes one with those that follow it, which no other may have.
func (p *pages) page(id uint64, flags ...uint16) (body []byte, flag uint16, elements int, err error) {
	if id < 2 || id >= p.count {
		return nil, 0, 0, bad(id, "is none")
	}
	head := p.data[id*p.size:]
	flag, more := le.Uint16(head[8:]), uint64(le.Uint32(head[12:]))
	known := false
	for _, f := range flags {
		known = known || f == flag
	}
	if le.Uint64(head) != id || !known || more >= p.count-id {
		return nil, 0, 0, bad(id, "is another, or something else")
	}
	for i := id; i <= id+more; i++ {
		if p.seen[i] {
			return nil, 0, 0, bad(i, "is used twice")
		}
		p.seen[i] = true
	}
	return head[:(more+1)*p.size], flag, int(le.Uint16(head[10:])), nil
}

// tree walks all that lies below a page.
func (p *pages) tree(id uint64) error {
	body, flag, n, err := p.page(id, flagBranch, flagLeaf)
	if err != nil {
		return err
	}
	if flag == flagLeaf {
		return p.leaf(body, n, id)
	}
	if n == 0 {
		return bad(id, "leads nowhere")
	}
	for i := range n {
		element, ok := part(body, pageHeader+i*16, 16)
		if ok {
			_, ok = part(element, int(le.Uint32(element)), int(le.Uint32(element[4:])))
		}
		if !ok {
			return outside(id)
		}
		if err := p.tree(le.Uint64(element[8:])); err != nil {
			return err
		}
	}
	return nil
}

// leaf looks at records, and walks the buckets among them.
func (p *pages) leaf(body []byte, n int, id uint64) error {
	for i := range n {
		element, ok := part(body, pageHeader+i*16, 16)
		if !ok {
			return outside(id)
		}
		flags, at, key, value := le.Uint32(element), int(le.Uint32(element[4:])), int(le.Uint32(element[8:])), int(le.Uint32(element[12:]))
		data, ok := part(element, at, key+value)
		if !ok || flags&^flagBucket != 0 || key == 0 || key > maxKey {
			return outside(id)
		}
		if flags == flagBucket {
			if err := p.bucket(data[key:key+value], id); err != nil {
				return err
			}
		}
	}
	return nil
}

// bucket walks one that has pages of its own, or lies within the page as a small one does.
func (p *pages) bucket(value []byte, id uint64) error {
	if len(value) < 16 {
		return outside(id)
	}
	if root := le.Uint64(value); root != 0 {
		return p.tree(root)
	}
	inside := value[16:]
	if len(inside) < pageHeader || le.Uint16(inside[8:]) != flagLeaf {
		return outside(id)
	}
	return p.leaf(inside, int(le.Uint16(inside[10:])), id)
}

// free looks at the list of free pages: the next write would destroy what one that is in use holds.
func (p *pages) free(id uint64) error {
	body, _, n, err := p.page(id, flagFreelist)
	if err != nil {
		return err
	}
	ids := body[pageHeader:]
	if n == 0xffff { // more of them are than the header counts
		n = int(min(le.Uint64(ids), uint64(len(ids)/8)))
		ids = ids[8:]
	}
	if len(ids) < n*8 {
		return outside(id)
	}
	for i := range n {
		one := le.Uint64(ids[i*8:])
		if one < 2 || one >= p.count || p.seen[one] {
			return bad(one, "is listed as free and is in use")
		}
		p.seen[one] = true
	}
	return nil
}

// part is b from at on; ok is false where fewer than n bytes are left.
func part(b []byte, at, n int) (rest []byte, ok bool) {
	if at > len(b) || n > len(b)-at {
		return nil, false
	}
	return b[at:], true
}

func outside(id uint64) error { return bad(id, "has something that ends outside of it") }

func bad(id uint64, what string) error { return fmt.Errorf("%w: page %d %s", ErrDamaged, id, what) }
