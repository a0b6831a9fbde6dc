// SPDX-License-Identifier: Apache-2.0

package service

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"
)

// The length of a network's block of VIPs, by family.
const (
	blockBits4 = 24
	blockBits6 = 112
)

// The two families, as indexes.
const (
	family4 = 0
	family6 = 1
)

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return family4
	}
	return family6
}

// pool is a range of VIPs that is given out to networks block by block. Block 0 stays free for
// hand-made services.
type pool struct {
	netip.Prefix
	blockBits int
	next      uint32 // block to try first, so that a block freed is not given again at once
}

func newPools(prefixes []netip.Prefix) ([]pool, error) {
	pools := make([]pool, 0, len(prefixes))
	for _, p := range prefixes {
		if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() {
			return nil, fmt.Errorf("service pool %s is no network prefix: write it without host bits", p)
		}
		bits := blockBits4
		if p.Addr().Is6() {
			bits = blockBits6
		}
		if p.Bits() >= bits {
			return nil, fmt.Errorf("service pool %s is too small: it must hold two blocks of /%d", p, bits)
		}
		for _, other := range pools {
			if other.Overlaps(p) {
				return nil, fmt.Errorf("service pools %s and %s overlap: name one of them", other.Prefix, p)
			}
		}
		pools = append(pools, pool{Prefix: p, blockBits: bits, next: 1})
	}
	return pools, nil
}

// blocks is how many blocks the pool has. A pool of more is used only in its first 2^24 blocks.
func (p *pool) blocks() uint32 { return 1 << min(p.blockBits-p.Bits(), 24) }

// block returns the i-th block.
func (p *pool) block(i uint32) netip.Prefix {
	return netip.PrefixFrom(add(p.Addr(), uint64(i)<<(p.Addr().BitLen()-p.blockBits)), p.blockBits)
}

// take returns a block that is not in use.
func (p *pool) take(used func(netip.Prefix) bool) (netip.Prefix, bool) {
	count := p.blocks()
	for range count {
		i := max(p.next%count, 1)
		p.next = i + 1
		if b := p.block(i); !used(b) {
			return b, true
		}
	}
	return netip.Prefix{}, false
}

// passed moves the pool's cursor past a block that is known to be in use.
func (p *pool) passed(b netip.Prefix) {
	if b.Bits() != p.blockBits || !p.Contains(b.Addr()) {
		return
	}
	offset := low64(b.Addr()) - low64(p.Addr())
	p.next = max(p.next, uint32(offset>>(p.Addr().BitLen()-p.blockBits))+1)
}

// passBlocks moves the cursors past blocks that the store knows.
func (m *Manager) passBlocks(blocks []netip.Prefix) {
	for i := range m.pools {
		for _, b := range blocks {
			m.pools[i].passed(b)
		}
	}
}

// handRange is the block that hand-made VIPs of an address's family come from, for messages.
func (m *Manager) handRange(a netip.Addr) string {
	for i := range m.pools {
		if m.pools[i].Addr().Is4() == a.Is4() {
			return m.pools[i].block(0).String()
		}
	}
	return "a pool of its family"
}

// HandBlock is the part of a service pool that hand-made services have.
func HandBlock(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4() {
		return netip.PrefixFrom(p.Masked().Addr(), blockBits4)
	}
	return netip.PrefixFrom(p.Masked().Addr(), blockBits6)
}

// inPools reports whether an address lies in a service pool.
func (m *Manager) inPools(a netip.Addr) bool {
	return slices.ContainsFunc(m.pools, func(p pool) bool { return p.Contains(a) })
}

// poolsText names the service pools, for messages.
func (m *Manager) poolsText() string {
	names := make([]string, len(m.pools))
	for i, p := range m.pools {
		names[i] = p.String()
	}
	return "the service pools (" + strings.Join(names, ", ") + ")"
}

// takeBlock gives a network one block of a family.
func (m *Manager) takeBlock(family int) (netip.Prefix, error) {
	used := func(b netip.Prefix) bool {
		for _, n := range m.networks {
			if n.blocks[family].Overlaps(b) {
				return true
			}
		}
		for vip := range m.handVIPs {
			if b.Contains(vip) {
				return true // made before the block was wanted
			}
		}
		return false
	}
	for i := range m.pools {
		p := &m.pools[i]
		if familyOf(p.Addr()) != family {
			continue
		}
		if b, ok := p.take(used); ok {
			return b, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("no block of VIPs is left in the IPv%d service pools: remove a network, or configure a larger pool", 4+2*family)
}

// Part of a block is given automatically only when the rest is full, so that mustang.vip=ADDRESS
// seldom meets an address that is taken: the first quarter.
const ownQuarter = 4

// vipFor chooses the VIP of a name: its place follows from the name, so that a network that comes
// back, or a state file that is lost, seldom moves it and the order of events hardly matters.
func vipFor(block netip.Prefix, name string, taken func(netip.Addr) bool) (netip.Addr, bool) {
	size := uint64(1) << (block.Addr().BitLen() - block.Bits())
	first := size / ownQuarter
	last := size - 2 // neither the first nor the last address of a block is a VIP
	h := fnv.New64a()
	h.Write([]byte(name))
	start := h.Sum64() % (last - first + 1)
	for i := range last - first + 1 {
		if a := add(block.Addr(), first+(start+i)%(last-first+1)); !taken(a) {
			return a, true
		}
	}
	for i := first - 1; i > 0; i-- {
		if a := add(block.Addr(), i); !taken(a) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// add returns a plus n, which stays within the last 64 bits of an address.
func add(a netip.Addr, n uint64) netip.Addr {
	b := a.As16()
	binary.BigEndian.PutUint64(b[8:], binary.BigEndian.Uint64(b[8:])+n)
	if a.Is4() {
		return netip.AddrFrom4([4]byte(b[12:]))
	}
	return netip.AddrFrom16(b)
}

func low64(a netip.Addr) uint64 {
	b := a.As16()
	return binary.BigEndian.Uint64(b[8:])
}
