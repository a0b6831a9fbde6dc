// SPDX-License-Identifier: Apache-2.0

// Package nft is the only speaker of nftables: what the eBPF programs do for other networks, it does for
// those that are made with ebpf=off. (The bench's hand-written rules, plain.go, are here for that alone.)
//
// A sandbox on such a network has a table of its own that translates services where the connection begins
// (sandbox.go), and one that leads its queries to our resolver while a daemon lives (names.go). The host has
// a table that keeps networks apart (host.go), and rules in the engine's own chain that let them through
// its firewall (engine.go).
package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/mustang-net/mustang/bpf"
)

// Mark is on the packets of our own sockets inside sandboxes (SO_MARK), which go to the engine's resolver.
const Mark = 0x6d737400

// Sandbox is a network namespace that is on a network without eBPF.
type Sandbox struct {
	Cookie   uint64
	Path     string
	Networks []uint32 // whose services it reaches; those of no network it reaches always
	DNSPort  uint16   // of our resolver in it; 0 for none
}

// Source is where services come from when the first sandbox needs them.
type Source interface {
	Services() ([]bpf.Service, error)
	Backends() ([]bpf.Backend, error)
}

// Options are what Tables work with.
type Options struct {
	Services Source
	Pools    [2]netip.Prefix // service pools, by family: their addresses never leave a sandbox
	// Cookie reads the netns cookie of the namespace at path.
	Cookie func(path string) (uint64, error)
	// Forget ends the UDP flows of a namespace that went to an address, or to any if it is invalid, and are
	// answered from another.
	Forget func(path string, to, from netip.Addr) error
}

// Tables are the tables of the host and of the sandboxes. Its methods are idempotent and may be called at
// the same time.
type Tables struct {
	Options
	kernel kernel

	mu       sync.Mutex
	boxes    map[uint64]*box
	loaded   bool // services and backends are known: only while there are sandboxes
	services map[bpf.Frontend]bpf.Service
	backends map[uint32]bpf.Backend
	dirty    map[bpf.Frontend]struct{} // changed since the last Flush
	woken    []netip.Addr              // VIPs that refused until then
	ends     []End                     // that the host's tables should know
	endsErr  error                     // why they may not
	beaten   time.Time                 // last
	tried    bool                      // the kernel has all that is needed
}

// box is a sandbox as far as its tables are known.
type box struct {
	Sandbox
	tables   tables
	wrong    bool                      // the tables are not as they should be
	failed   error                     // why they could not be mended
	nameless error                     // why names are not answered by us
	has      map[bpf.Frontend]struct{} // frontends in them
	// unforgotten are flows that should have ended, and why they could not be.
	unforgotten map[flows]error
}

// kernel opens the tables of sandboxes and writes those of the host; a fake in tests.
type kernel interface {
	sandbox(path string, pools [2]netip.Prefix) (tables, error)
	try(pools [2]netip.Prefix) error
	setEnds([]End) error
	endsStand([]End) (bool, error)
}

// tables are those of one sandbox.
type tables interface {
	replace([]frontend) error                         // everything at once
	change(put []frontend, gone []bpf.Frontend) error // all of it or nothing
	names(port uint16) error                          // 0 for none
	beat() error                                      // our resolver answers
	frontends() (map[bpf.Frontend]struct{}, error)    // that it has
	remove() error
	close()
}

// New returns tables without sandboxes; nothing is read or written.
func New(o Options) *Tables { return newTables(o, netlink{}) }

func newTables(o Options, k kernel) *Tables {
	return &Tables{
		Options: o, kernel: k, boxes: map[uint64]*box{},
		services: map[bpf.Frontend]bpf.Service{}, backends: map[uint32]bpf.Backend{},
		dirty: map[bpf.Frontend]struct{}{},
	}
}

// Close lets go of the sandboxes. Translation goes on; names are the engine's from now on.
func (t *Tables) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, b := range t.boxes {
		b.tables.close()
	}
	t.boxes = map[uint64]*box{}
}

// Know takes sandboxes as another process has left them, so that changes of services reach them.
func (t *Tables) Know(sandboxes []Sandbox) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range sandboxes {
		if t.boxes[s.Cookie] != nil {
			continue
		}
		b, err := t.open(s.Cookie, s.Path)
		if err != nil {
			continue // it has ended, and a daemon will find out
		}
		b.Sandbox = s
		if b.has, err = b.tables.frontends(); err != nil {
			b.wrong = true
		}
		t.boxes[s.Cookie] = b
	}
}

// errEnded says that a sandbox is not, or no longer, where its path leads.
var errEnded = errors.New("there is no such sandbox")

// open opens a sandbox, whose tables are not read.
func (t *Tables) open(cookie uint64, path string) (*box, error) {
	tables, err := t.kernel.sandbox(path, t.Pools)
	// after it is open: a path may come to lead to another namespace, and never leads back
	now, gone := t.Cookie(path)
	if gone == nil && now != cookie {
		gone = fmt.Errorf("another namespace is at %s", path)
	}
	if gone != nil {
		if err == nil {
			tables.close()
		}
		return nil, fmt.Errorf("%w: %w", errEnded, gone)
	}
	if err != nil {
		return nil, fmt.Errorf("open the sandbox %s: %w", path, err)
	}
	return &box{Sandbox: Sandbox{Cookie: cookie, Path: path}, tables: tables, unforgotten: map[flows]error{}}, nil
}

// PutSandbox makes the tables of a sandbox as they should be, in one transaction.
func (t *Tables) PutSandbox(s Sandbox) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.load(); err != nil {
		return err
	}
	b := t.boxes[s.Cookie]
	if b == nil {
		var err error
		if b, err = t.open(s.Cookie, s.Path); err != nil {
			return err
		}
		b.wrong = true
		t.boxes[s.Cookie] = b
	}
	b.wrong = b.wrong || b.has == nil || !slices.Equal(b.Networks, s.Networks)
	b.Sandbox = s
	if err := t.settle(b); err != nil {
		return err
	}
	// names keep the engine's answers where ours cannot be had; every beat tries again
	b.nameless = b.tables.names(s.DNSPort)
	return nil
}

// State is what the tables are for, and what is wrong with them.
type State struct {
	Sandboxes, Ends int
	Err             error
}

// State is how the tables are.
func (t *Tables) State() State {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := State{Sandboxes: len(t.boxes), Ends: len(t.ends)}
	for _, b := range t.boxes {
		if b.nameless != nil {
			s.Err = fmt.Errorf("in %s names keep the engine's answers: %w", b.Path, b.nameless)
		}
	}
	for _, b := range t.boxes { // is worse
		for _, err := range b.unforgotten {
			s.Err = err
		}
		if b.failed != nil {
			s.Err = b.failed
		}
	}
	if t.endsErr != nil {
		s.Err = t.endsErr
	}
	return s
}

// DeleteSandbox removes the tables of a sandbox. One that has ended has none.
func (t *Tables) DeleteSandbox(cookie uint64, path string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.boxes[cookie]
	known := b != nil
	if !known {
		var err error
		if b, err = t.open(cookie, path); errors.Is(err, errEnded) {
			return nil // and its tables with it
		} else if err != nil {
			return err
		}
	}
	if err := b.tables.remove(); err != nil {
		if !known {
			b.tables.close()
		}
		return fmt.Errorf("remove the tables of the sandbox %s: %w", path, err)
	}
	b.tables.close()
	delete(t.boxes, cookie)
	if len(t.boxes) == 0 {
		t.loaded = false
		clear(t.services)
		clear(t.backends)
		clear(t.dirty)
		t.woken = nil
	}
	return nil
}

// Beat tells the sandboxes that our resolver answers: for the next two seconds their queries go to it.
func (t *Tables) Beat() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.beats()
}

// keepTrusted is beats if the last was long ago. What writes sandbox after sandbox holds up [Tables.Beat].
func (t *Tables) keepTrusted() {
	if time.Since(t.beaten) > trusted/4 {
		t.beats()
	}
}

func (t *Tables) beats() {
	t.beaten = time.Now()
	for _, b := range t.boxes {
		if b.DNSPort == 0 {
			continue
		}
		if b.tables.beat() != nil { // another process had the table, or somebody removed it
			b.nameless = b.tables.names(b.DNSPort)
		}
	}
}

// Supported tells whether this kernel can do what networks without eBPF need, saying what is missing: it takes a sandbox's
// table, and removes it in the same transaction.
func (t *Tables) Supported() error {
	t.mu.Lock() // the library's ids of sets are nobody's
	defer t.mu.Unlock()
	if t.tried {
		return nil
	}
	if err := t.kernel.try(t.Pools); err != nil {
		return fmt.Errorf("try what ebpf=off needs of nftables: %w", explain(err))
	}
	t.tried = true
	return nil
}

func (netlink) try(pools [2]netip.Prefix) error {
	c, err := nftables.New(nftables.WithSockOptions(sized))
	if err != nil {
		return err
	}
	b := newBase(c.AddTable(&nftables.Table{Name: tableName + "-try", Family: nftables.TableFamilyINet}), pools)
	if err := b.add(c); err != nil {
		return err
	}
	target := netip.MustParseAddrPort("192.0.2.1:80")
	f := frontend{Frontend: bpf.Frontend{Addr: netip.MustParseAddr("192.0.2.2")}, hand: true}
	f.targets = []netip.AddrPort{target, netip.AddrPortFrom(target.Addr(), 0)}
	sticky := f
	sticky.Port, sticky.affinity = 80, true
	if err := b.put(c, []frontend{f, sticky}); err != nil {
		return err
	}
	c.DelTable(b.table)
	return c.Flush()
}

// explain says what a kernel lacks that does not know an expression or a kind of chain.
func explain(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return fmt.Errorf("%w: the kernel needs CONFIG_NF_TABLES_INET, CONFIG_NFT_NAT, CONFIG_NFT_NUMGEN, CONFIG_NFT_HASH, "+
			"CONFIG_NFT_REDIR, CONFIG_NFT_MASQ, CONFIG_NFT_CT and CONFIG_NFT_REJECT_INET", err)
	}
	return err
}
