// SPDX-License-Identifier: Apache-2.0

// Package ports holds the host's ports that endpoints have published: nobody else takes them, and what the
// programs cannot translate is passed on.
package ports

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// Port is a TCP or UDP port of the host's.
type Port struct {
	Addr     netip.AddrPort // the unspecified address stands for every one of its family
	Protocol string         // tcp or udp, in any case
}

// String is the port as messages show it: 0.0.0.0:80/tcp.
func (p Port) String() string { return p.Addr.String() + "/" + strings.ToLower(p.Protocol) }

func (p Port) udp() bool { return strings.EqualFold(p.Protocol, "udp") }

// Holder has a socket bound for every port it holds. Connections that reach one were not translated: their
// client is bound to a loopback address, or speaks IPv6 to a container that does not. They are passed on.
//
// A container may publish thousands of ports, of which hardly any ever needs that: a port costs its socket and
// some 70 bytes, and one goroutine waits for all of them.
type Holder struct {
	exempt func(fd int) error
	log    logrus.FieldLogger
	limits limits

	poll  *os.File // epoll instance
	epoll int      // its descriptor
	ctx   context.Context
	stop  context.CancelFunc // ends what is being passed on
	done  sync.WaitGroup

	mu    sync.Mutex // held for a moment only: nothing waits with it
	held  map[key]int32
	pages []*page // of sockets, of which held's values are the places
	free  []int32 // places
	last  int32   // generation given

	own     map[key]bool           // where connections of our own come from
	sources map[key][]netip.Prefix // that are passed on, of ports which not everybody may reach
	splices int
	flows   flows

	host   map[netip.Addr]bool // addresses of the host's own,
	hostAt time.Time           // as they were then
}

// limits bound what clients can make the daemon spend.
type limits struct {
	splices, flows int
	idle           time.Duration // after which a flow of datagrams is forgotten
}

// key is a Port in few bytes, IPv4 mapped into IPv6.
type key struct {
	addr [16]byte
	port uint16
	udp  bool
}

func keyOf(a netip.AddrPort, udp bool) key {
	return key{a.Addr().As16(), a.Port(), udp}
}

func (k key) addrPort() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(k.addr).Unmap(), k.port)
}

// socket is one that holds a port, of one family or of both.
type socket struct {
	key
	via   [2]key // for clients of IPv4, IPv6; without an address: nowhere
	fd    int32
	gen   int32 // tells it from those that had its place before; 0: the place is free
	flows int32
	both  bool  // families
	keys  uint8 // how many of held lead here
}

// family is the place of an address in socket.via.
func family(a netip.Addr) int {
	if a.Unmap().Is4() {
		return 0
	}
	return 1
}

// page keeps sockets where they are while their number grows.
type page [128]socket

// socket is the one at a place.
func (h *Holder) socket(at int32) *socket {
	return &h.pages[at/int32(len(page{}))][at%int32(len(page{}))]
}

// place is a free one.
func (h *Holder) place() int32 {
	if len(h.free) == 0 {
		first := int32(len(h.pages) * len(page{}))
		h.pages = append(h.pages, new(page))
		for i := int32(len(page{})) - 1; i >= 0; i-- {
			h.free = append(h.free, first+i)
		}
	}
	at := h.free[len(h.free)-1]
	h.free = h.free[:len(h.free)-1]
	return at
}

// New starts a holder. exempt keeps the socket hooks off a socket that is given to it.
func New(exempt func(fd int) error, log logrus.FieldLogger) (*Holder, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err == nil {
		err = unix.SetNonblock(fd, true) // so that the runtime waits for it, and no thread of its own does
	}
	if err != nil {
		return nil, fmt.Errorf("wait for connections to published ports: %w", err)
	}
	h := &Holder{
		exempt: exempt, log: log, limits: limits{maxSplices, maxFlows, flowIdle}, poll: os.NewFile(uintptr(fd), "epoll"), epoll: fd,
		held: map[key]int32{}, own: map[key]bool{}, sources: map[key][]netip.Prefix{},
	}
	h.ctx, h.stop = context.WithCancel(context.Background())
	wait, err := h.poll.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("wait for connections to published ports: %w", err), h.poll.Close())
	}
	growFiles(fd)
	h.done.Go(func() { h.serve(wait) })
	return h, nil
}

// Hold binds a port. What reaches it is passed on to via, where the hooks translate. Holding it again only changes
// via; a port that a process of the host has is refused with its name, as an error that is [ErrInUse].
func (h *Holder) Hold(p Port, via netip.AddrPort) error {
	k := keyOf(p.Addr, p.udp())
	h.mu.Lock()
	defer h.mu.Unlock()
	if at, ok := h.held[k]; ok {
		h.lead(at, p.Addr.Addr(), via)
		return nil
	}
	at, err := h.find(p)
	if errors.Is(err, unix.EADDRINUSE) {
		return inUse{p}
	}
	if err != nil {
		return fmt.Errorf("hold the port %s: %w", p, err)
	}
	h.held[k] = at
	h.socket(at).keys++
	h.lead(at, p.Addr.Addr(), via)
	return nil
}

// find is the socket of both families that has the port already, or a new one.
func (h *Holder) find(p Port) (int32, error) {
	other := Port{netip.AddrPortFrom(netip.IPv6Unspecified(), p.Addr.Port()), p.Protocol}
	if p.Addr.Addr().Is6() {
		other.Addr = netip.AddrPortFrom(netip.IPv4Unspecified(), p.Addr.Port())
	}
	if at, ok := h.held[keyOf(other.Addr, p.udp())]; ok && p.Addr.Addr().IsUnspecified() && h.socket(at).both {
		return at, nil
	}
	return h.add(p, false)
}

// HoldEvery holds a port of every address of both families, as two calls of Hold would at twice the cost: a container
// with a thousand ports waits for it. Each family is released by itself.
func (h *Holder) HoldEvery(protocol string, number uint16, via4, via6 netip.AddrPort) error {
	p4 := Port{netip.AddrPortFrom(netip.IPv4Unspecified(), number), protocol}
	p6 := Port{netip.AddrPortFrom(netip.IPv6Unspecified(), number), protocol}
	k4, k6 := keyOf(p4.Addr, p4.udp()), keyOf(p6.Addr, p6.udp())
	h.mu.Lock()
	_, had4 := h.held[k4]
	_, had6 := h.held[k6]
	if had4 || had6 {
		h.mu.Unlock()
		err := h.Hold(p4, via4)
		if err == nil {
			err = h.Hold(p6, via6)
		}
		if err != nil && !had4 {
			h.Release(p4)
		}
		return err
	}
	defer h.mu.Unlock()
	at, err := h.add(p6, true)
	if errors.Is(err, unix.EADDRINUSE) {
		return inUse{p4, p6}
	}
	if err != nil {
		return fmt.Errorf("hold the port %d/%s: %w", number, strings.ToLower(protocol), err)
	}
	h.held[k4], h.held[k6] = at, at
	s := h.socket(at)
	s.both, s.keys = true, 2
	h.lead(at, p4.Addr.Addr(), via4)
	h.lead(at, p6.Addr.Addr(), via6)
	return nil
}

// add binds a socket and finds a place for it.
func (h *Holder) add(p Port, both bool) (int32, error) {
	if h.ctx.Err() != nil {
		return 0, os.ErrClosed
	}
	fd, err := h.bind(p, both)
	if err != nil {
		return 0, err
	}
	at, gen := h.place(), h.generation()
	if err := h.await(fd, at, gen); err != nil {
		unix.Close(fd)
		h.free = append(h.free, at)
		return 0, err
	}
	*h.socket(at) = socket{key: keyOf(p.Addr, p.udp()), fd: int32(fd), gen: gen}
	return at, nil
}

// lead says where clients of an address's family are passed on to.
func (h *Holder) lead(at int32, a netip.Addr, via netip.AddrPort) {
	s := h.socket(at)
	if k := viaOf(via, s.udp); s.via[family(a)] != k {
		h.endFlows(at)
		s.via[family(a)] = k
	}
}

func viaOf(a netip.AddrPort, udp bool) key {
	if !a.IsValid() {
		return key{}
	}
	return keyOf(a, udp)
}

// ErrInUse says that a process of the host has the port.
var ErrInUse = errors.New("in use")

// inUse looks for the process when somebody reads it: whoever tries a range of ports does not. The process may have
// any of the ports.
type inUse []Port

func (e inUse) Error() string {
	in, whose := e[0], ""
	for _, p := range e {
		if whose = by(p); whose != "" {
			in = p
			break
		}
	}
	return fmt.Sprintf("port %s is %v%s: stop it, or choose another port", in, ErrInUse, whose)
}

func (inUse) Unwrap() error { return ErrInUse }

// Conflict marks its class.
func (inUse) Conflict() {}

// ErrReserved says of an [ErrInUse] that whoever has the port only keeps it from others, for the one who asks to publish it.
var ErrReserved = errors.New("reserved")

// Is tells whether the error is [ErrReserved], for which it looks for the processes.
func (e inUse) Is(target error) bool {
	return target == ErrReserved && slices.ContainsFunc(e, reserved)
}

// Release undoes Hold, and one family of HoldEvery, which stays reserved until the other goes, too. Connections that are
// being passed on go on.
func (h *Holder) Release(p Port) {
	k := keyOf(p.Addr, p.udp())
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.sources, k)
	at, ok := h.held[k]
	if !ok {
		return
	}
	delete(h.held, k)
	h.endFlows(at)
	s := h.socket(at)
	if s.keys--; s.keys > 0 {
		s.via[family(p.Addr.Addr())] = key{}
		return
	}
	unix.Close(int(s.fd)) // which takes it out of the epoll instance
	*s = socket{}
	if len(h.held) == 0 { // a thousand ports are rarely followed by as many
		h.held, h.pages, h.free = map[key]int32{}, nil, nil
		return
	}
	h.free = append(h.free, at)
}

// Close releases every port and ends what is being passed on.
func (h *Holder) Close() {
	h.mu.Lock()
	h.stop()
	h.mu.Unlock()
	h.poll.Close() // which wakes serve
	h.done.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, at := range h.held {
		h.endFlows(at)
		if s := h.socket(at); s.gen != 0 {
			unix.Close(int(s.fd))
			s.gen = 0
		}
	}
	h.held, h.pages, h.free = map[key]int32{}, nil, nil
}

// generation gives numbers that are never 0.
func (h *Holder) generation() int32 {
	h.last = max(h.last+1, 1)
	return h.last
}

// await has serve told of what comes on a socket.
func (h *Holder) await(fd int, at, gen int32) error {
	return unix.EpollCtl(h.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: at, Pad: gen})
}
