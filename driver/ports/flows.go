// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// flowIdle is how long the answer to a datagram may take.
	flowIdle = 60 * time.Second
	// maxFlows is how many clients have theirs passed on at once; then one that was silent for long makes room.
	maxFlows  = 1024
	maxPacket = 65535
)

// flows are the datagrams that clients exchange with published ports. Each client has a socket, by which the hooks
// keep it to one backend as long as that lives.
type flows struct {
	list     []*flow
	free     []int32 // places in list
	byClient map[client]int32
	sweep    *time.Timer // forgets what is idle; runs while there are any
	packet   []byte      // room for one, shared by all
}

// client is who sends datagrams, and to where.
type client struct {
	from, to key
	zone     uint32
	socket   int32
}

// flow is one client's.
type flow struct {
	client
	via   key
	fd    int
	gen   int32
	own   key
	back  unix.Sockaddr // of the client
	info  []byte        // control message that has answers come from where the client sent to
	heard time.Time
}

// receive passes a datagram on. It is called with the lock held, as all here is, and nothing here waits.
func (h *Holder) receive(at int32) error {
	s, fs := h.socket(at), &h.flows
	packet := fs.packet
	if packet == nil {
		packet = make([]byte, maxPacket)
		fs.packet = packet
	}
	var control [64]byte
	n, controls, _, from, err := unix.Recvmsg(int(s.fd), packet, control[:], 0)
	if err != nil || from == nil {
		return nil // as any datagram, it may be lost
	}
	c := client{from: keyOf(addrOf(from), true), socket: at}
	via := s.via[family(addrOf(from).Addr())]
	if via == (key{}) || h.own[c.from] || !h.admits(s, addrOf(from).Addr()) {
		return nil
	}
	if six, ok := from.(*unix.SockaddrInet6); ok {
		c.zone = six.ZoneId
	}
	var info []byte
	c.to.addr, info = destination(control[:controls])
	i, ok := fs.byClient[c]
	if !ok {
		if i, err = h.begin(c, via, from, info); err != nil {
			return fmt.Errorf("pass a datagram to port %s on: %w", s.addrPort(), err)
		}
	}
	f := fs.list[i]
	f.heard = time.Now()
	_ = unix.Sendto(f.fd, packet[:n], unix.MSG_DONTWAIT, sockaddr(f.via.addrPort())) // here, too
	return nil
}

// begin opens the socket of a flow.
func (h *Holder) begin(c client, via key, from unix.Sockaddr, info []byte) (int32, error) {
	fs := &h.flows
	if len(fs.byClient) >= h.limits.flows {
		h.makeRoom()
	}
	fd, err := open(Port{Addr: via.addrPort(), Protocol: "udp"}, false)
	if err != nil {
		return 0, err
	}
	own, err := h.claim(fd, via)
	at, fresh := int32(len(fs.list)), true
	if n := len(fs.free); n > 0 {
		at, fresh = fs.free[n-1], false
	}
	gen := h.generation()
	if err == nil {
		err = h.await(fd, ^at, gen)
	}
	if err != nil {
		unix.Close(fd)
		return 0, err
	}
	f := &flow{client: c, via: via, fd: fd, gen: gen, own: own, back: from, info: info}
	if fresh {
		fs.list = append(fs.list, f)
	} else {
		fs.free = fs.free[:len(fs.free)-1]
		fs.list[at] = f
	}
	if fs.byClient == nil {
		fs.byClient = map[client]int32{}
		fs.sweep = time.AfterFunc(h.limits.idle, h.forget)
	}
	fs.byClient[c] = at
	h.own[own] = true
	h.socket(c.socket).flows++
	return at, nil
}

// answer passes an answer back.
func (fs *flows) answer(h *Holder, at, gen int32) {
	if int(at) >= len(fs.list) || fs.list[at] == nil || fs.list[at].gen != gen {
		return
	}
	f := fs.list[at]
	n, from, err := unix.Recvfrom(f.fd, fs.packet, unix.MSG_DONTWAIT)
	if err != nil || from == nil || keyOf(addrOf(from), true) != f.via {
		return // a stranger's
	}
	f.heard = time.Now()
	// it, too, may be lost
	_ = unix.Sendmsg(int(h.socket(f.socket).fd), fs.packet[:n], f.info, f.back, unix.MSG_DONTWAIT)
}

// end closes a flow.
func (h *Holder) end(at int32) {
	fs := &h.flows
	f := fs.list[at]
	unix.Close(f.fd)
	delete(h.own, f.own)
	delete(fs.byClient, f.client)
	fs.list[at] = nil
	fs.free = append(fs.free, at)
	h.socket(f.socket).flows--
	if len(fs.byClient) == 0 {
		fs.sweep.Stop()
		*fs = flows{}
	}
}

// endFlows ends those of a held port.
func (h *Holder) endFlows(socket int32) {
	if h.socket(socket).flows == 0 {
		return
	}
	for at, f := range h.flows.list {
		if f != nil && f.socket == socket {
			h.end(int32(at))
		}
	}
}

// makeRoom ends the flow that was silent for longest among a few.
func (h *Holder) makeRoom() {
	const few = 16
	oldest, looked := int32(-1), 0
	for _, at := range h.flows.byClient { // in no order
		if oldest < 0 || h.flows.list[at].heard.Before(h.flows.list[oldest].heard) {
			oldest = at
		}
		if looked++; looked == few {
			break
		}
	}
	h.end(oldest)
}

// forget ends flows that are idle.
func (h *Holder) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for at, f := range h.flows.list {
		if f != nil && time.Since(f.heard) >= h.limits.idle {
			h.end(int32(at))
		}
	}
	if len(h.flows.byClient) > 0 {
		h.flows.sweep.Reset(h.limits.idle / 4)
	}
}

// destination finds the address that a datagram came to, and makes the control message with which answers come
// from there. Both are empty for a socket of one address.
func destination(controls []byte) (addr [16]byte, info []byte) {
	messages, err := unix.ParseSocketControlMessage(controls)
	if err != nil {
		return addr, nil
	}
	for i := range messages {
		m := &messages[i]
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			var p unix.Inet4Pktinfo
			copy(p.Spec_dst[:], m.Data[4:8]) // what the kernel would answer from
			copy(addr[12:], m.Data[4:8])
			return addr, unix.PktInfo4(&p)
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			var p unix.Inet6Pktinfo
			copy(p.Addr[:], m.Data[:16])
			copy(addr[:], m.Data[:16])
			return addr, unix.PktInfo6(&p)
		}
	}
	return addr, nil
}
