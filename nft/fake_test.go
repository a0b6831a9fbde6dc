// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/mustang-net/mustang/bpf"
)

var errBroken = errors.New("broken")

// memory is a kernel's tables in miniature.
type memory struct {
	boxes  map[string]*memoryBox // by path
	ends   []End
	half   bool // what comes after the tables fails
	flush  bool // somebody has removed the host's
	broken bool
}

type memoryBox struct {
	has      map[bpf.Frontend]frontend
	replaced int
	port     uint16
	beats    int
	open     int
	broken   bool // by a change: the next replacement mends it
	dead     bool // nothing can be written
}

func (m *memory) sandbox(path string, _ [2]netip.Prefix) (tables, error) {
	if m.boxes[path] == nil {
		return nil, errBroken
	}
	m.boxes[path].open++
	return m.boxes[path], nil
}

func (m *memory) try([2]netip.Prefix) error {
	if m.broken {
		return unix.ENOENT
	}
	return nil
}

func (m *memory) setEnds(ends []End) error {
	if m.broken {
		return errBroken
	}
	m.ends, m.flush = slices.Clone(ends), false
	if m.half {
		return errBroken
	}
	return nil
}

func (m *memory) endsStand([]End) (bool, error) { return !m.flush, nil }

func (b *memoryBox) replace(all []frontend) error {
	if b.dead {
		return errBroken
	}
	b.replaced++
	b.broken, b.has = false, map[bpf.Frontend]frontend{}
	for _, f := range all {
		b.has[f.Frontend] = f
	}
	return nil
}

func (b *memoryBox) change(put []frontend, gone []bpf.Frontend) error {
	if b.broken || b.dead || b.has == nil {
		return errBroken
	}
	for _, f := range gone {
		if _, ok := b.has[f]; !ok {
			return fmt.Errorf("%s is not there", f)
		}
		delete(b.has, f)
	}
	for _, f := range put {
		b.has[f.Frontend] = f
	}
	return nil
}

func (b *memoryBox) names(port uint16) error {
	b.port = port
	return nil
}

func (b *memoryBox) beat() error {
	if b.dead {
		return errBroken
	}
	b.beats++
	return nil
}

func (b *memoryBox) frontends() (map[bpf.Frontend]struct{}, error) {
	if b.has == nil {
		return nil, errNoTable
	}
	out := map[bpf.Frontend]struct{}{}
	for f := range b.has {
		out[f] = struct{}{}
	}
	return out, nil
}

func (b *memoryBox) remove() error {
	if b.dead {
		return errBroken
	}
	b.has, b.port = nil, 0
	return nil
}

func (b *memoryBox) close() { b.open-- }

// lines are the frontends with their targets.
func (b *memoryBox) lines() []string {
	out := []string{}
	for _, f := range slices.Collect(maps.Values(b.has)) {
		out = append(out, fmt.Sprintf("%s %v hand %v affinity %v", f.Frontend, f.targets, f.hand, f.affinity))
	}
	slices.Sort(out)
	return out
}

// source is the eBPF maps.
type source struct {
	reads    int
	services []bpf.Service
	backends []bpf.Backend
}

func (s *source) Services() ([]bpf.Service, error) {
	s.reads++
	return s.services, nil
}

func (s *source) Backends() ([]bpf.Backend, error) { return s.backends, nil }

// world is Tables on a fake kernel.
type world struct {
	*Tables
	t        *testing.T
	kernel   *memory
	source   *source
	forgot   []string
	unable   bool // to forget
	one, two *memoryBox
}

const (
	path1 = "/run/netns/one"
	path2 = "/run/netns/two"
)

func newWorld(t *testing.T) *world {
	w := &world{t: t, source: &source{}, one: &memoryBox{}, two: &memoryBox{}}
	w.kernel = &memory{boxes: map[string]*memoryBox{path1: w.one, path2: w.two}}
	w.start()
	return w
}

// start is a process that begins.
func (w *world) start() {
	w.Tables = newTables(Options{
		Services: w.source,
		Cookie: func(path string) (uint64, error) {
			return map[string]uint64{path1: 1, path2: 2}[path], nil
		},
		Forget: func(path string, to, from netip.Addr) error {
			if w.unable && path == path1 {
				return errBroken
			}
			w.forgot = append(w.forgot, fmt.Sprintf("%s %s %s", path, to, from))
			return nil
		},
	}, w.kernel)
}

func (w *world) put(cookie uint64, port uint16, networks ...uint32) {
	w.t.Helper()
	path := path1
	if cookie == 2 {
		path = path2
	}
	require.NoError(w.t, w.PutSandbox(Sandbox{Cookie: cookie, Path: path, Networks: networks, DNSPort: port}))
}

func vip(i byte) bpf.Frontend { return bpf.Frontend{Addr: netip.AddrFrom4([4]byte{10, 96, 1, i})} }

func backend(id uint32) bpf.Backend {
	return bpf.Backend{ID: id, Addr: netip.AddrFrom4([4]byte{10, 0, 0, byte(id)})}
}
