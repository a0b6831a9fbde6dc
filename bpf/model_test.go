// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// model knows a host's endpoints, services and flows as a person would list them.
type model struct {
	endpoints  map[netip.Addr]Endpoint
	interfaces map[int]Interface
	services   map[Frontend]Service
	backends   map[uint32]Backend
	pools      []netip.Prefix
	uplinks    map[int]Uplink
	// entered tells what a new flow's packets become, where no frame does.
	entered func(request tuple) (tuple, bool)
	used    time.Duration // when a packet was of any flow to a service
	clock   func() time.Duration
	largest int // packet that each device takes
	segment int // of the frame that is looked at
	wayOut  int // the device that leads to everywhere but the host itself

	// What has begun, by the tuple as it arrives: requests from who began, answers from who was asked.
	requests, answers map[tuple]*flow
	left, returns     map[tuple]*flow // those that leave the host
	fragments         map[pieceKey]flow
	leftPieces        map[pieceKey]tuple
}

// flow is one direction of a flow: what its packets become.
type flow struct {
	becomes tuple
	backend uint32
	heard   *time.Duration // when, of either direction
	spoken  bool           // more than the SYN that began it has come
	closed  bool           // by a FIN or a reset
	within  bool           // a container began it
	uplink  int            // by which its client comes, where a slave answers
}

type pieceKey struct {
	src, dst netip.Addr
	id       uint32
	proto    uint8
}

func (p *packet) piece() pieceKey {
	return pieceKey{p.t.src.Addr(), p.t.dst.Addr(), p.id, p.t.proto}
}

// judgement is what must become of a frame.
type judgement struct {
	verdict uint32
	frame   []byte // nil for a frame that goes nowhere
	reason  string // and direction; "" for what is not counted
}

// decision is an judgement, or that the next rule decides.
type decision struct {
	judgement
	made bool
}

var undecided decision

func (o judgement) decided() decision { return decision{o, true} }

const (
	fromContainers = " from-container"
	toContainers   = " to-container"
)

func passes(b []byte) judgement       { return judgement{verdict: verdictPass, frame: b} }
func dropped(reason string) judgement { return judgement{verdict: verdictDrop, reason: reason} }
func redirected(b []byte) judgement   { return judgement{verdict: verdictRedirect, frame: b} }

// at is where a program looks at a frame, which the model names its rules after.
type place struct {
	*model
	iface     *Interface // of the container whose end this is; nil in a sandbox
	ifindex   int
	direction string
	got       []byte // the frame that came out: it tells what was chosen at random
	sender    netip.Addr
	network   uint32
	outside   bool // it has come by an uplink
	known     bool // the packet is of a flow to a service, or to a published port
	forged    bool // the packet is not from who began its flow
	uplink    int  // by which the client of the packet's flow comes
}

func (m *model) read(b []byte) (packet, bool) { return readSegments(b, m.segment) }

// fromContainer judges what a container sends at the host's end of its device.
func (m *model) fromContainer(ifindex int, in, got []byte) judgement {
	i := m.interfaces[ifindex]
	w := &place{model: m, iface: &i, ifindex: ifindex, direction: fromContainers, got: got}
	switch beAt(in, 12) {
	case etherARP:
		return w.arp(in)
	case etherIP4, etherIP6:
	case 0x8100, 0x88a8:
		return dropped("vlan" + w.direction)
	default:
		return dropped("no-route" + w.direction)
	}
	p, ok := m.read(in)
	if !ok {
		return dropped("malformed" + w.direction)
	}
	if p.t.proto == protoICMP6 && p.v6 && !p.later && p.icmpType == 135 {
		return w.solicitation(&p)
	}
	if p.t.dst.Addr().IsMulticast() || p.t.dst.Addr() == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return dropped("multicast" + w.direction)
	}
	if p.misleads() && !(p.icmpType == 136 && p.t.dst.Addr() == i.Gateway6) {
		return dropped("spoofed" + w.direction) // only the host's end tells of routers and neighbours
	}
	own, known := m.endpoints[p.t.src.Addr()]
	if !known || own.IfIndex != ifindex {
		return dropped("spoofed" + w.direction)
	}
	w.sender, w.network = p.t.src.Addr(), own.Network
	came := p
	dst, near := m.endpoints[p.t.dst.Addr()]
	if m.inUse() || !near || dst.Network != own.Network || !reaches(dst) { // else it goes straight there
		w.answer(&p)
	}
	if w.known {
		return w.onward(&p, &came, true, true)
	}
	if d := w.request(&p); d.made {
		return d.judgement
	}
	return w.onward(&p, &came, w.known, false)
}

// toContainer judges what goes to a container at the host's end; from is the device by which it came, 0 the host itself.
func (m *model) toContainer(ifindex, from int, in, got []byte) judgement {
	if t := beAt(in, 12); t != etherIP4 && t != etherIP6 {
		return passes(in)
	}
	i := m.interfaces[ifindex]
	w := &place{model: m, iface: &i, ifindex: ifindex, direction: toContainers, got: got}
	p, ok := m.read(in)
	if !ok {
		return dropped("malformed" + w.direction)
	}
	_, w.outside = m.uplinks[from]
	if w.outside && w.inside(p.t.src.Addr()) {
		return dropped("spoofed" + w.direction)
	}
	if w.answer(&p); w.known {
		return passes(p.raw) // of a flow to a service
	}
	src, known := m.endpoints[p.t.src.Addr()]
	switch {
	case from == 0 && w.shuns(&p):
		return dropped("isolated" + w.direction)
	case from == 0, known && src.Network == i.Network && src.IfIndex == from, w.wasSent(p.t):
		return passes(in)
	case src.Host && i.Egress && p.t.proto == protoTCP && !p.isSYN(): // the stack had sent a container to it, as the host
		return passes(in)
	case w.wasAsked(&p):
		w.follow(&p, p.t, 0)
		return passes(in)
	}
	return dropped("isolated" + w.direction)
}

// inside tells whether an address is the host's or a container's behind it: nobody outside has it.
func (m *model) inside(a netip.Addr) bool {
	e, known := m.endpoints[a]
	return known && (e.Host || e.Redirect || e.Via != 0 && e.Parent == 0)
}

// reaches tells whether packets can be handed to a container from outside of its sandbox.
func reaches(e Endpoint) bool { return e.Redirect || e.Via != 0 }

// shuns tells whether the network keeps containers and the host apart in the packet's family.
func (w *place) shuns(p *packet) bool {
	return w.iface != nil && (p.v6 && w.iface.Isolated6 || !p.v6 && w.iface.Isolated4)
}

// wasSent tells whether a packet with this tuple is one that became so here.
func (m *model) wasSent(t tuple) bool {
	return m.answers[t.back()] != nil || m.requests[t.back()] != nil
}

// wasAsked tells whether the packet belongs to a flow that its destination began towards the outside, or tells of one.
func (w *place) wasAsked(p *packet) bool {
	if p.whole() && p.isError() {
		q, ok := p.quoted()
		return ok && q.t.src.Addr() == p.t.dst.Addr() && w.left[q.t] != nil
	}
	return w.left[p.t.back()] != nil
}

// follow has later fragments go where their head goes.
func (w *place) follow(p *packet, t tuple, uplink int) {
	if p.first {
		w.fragments[p.piece()] = flow{becomes: t, uplink: uplink}
	}
}

// over tells whether a direction has not been heard of for too long: it is remembered, so that errors about it are known
// for what they are, and begins anew.
func (m *model) over(f *flow, proto uint8) bool {
	limit := longest
	switch {
	case proto == protoUDP:
		limit = 2 * time.Minute
	case f.closed:
		limit = 4 * time.Minute
	case !f.spoken:
		limit = 20 * time.Second
	}
	return m.clock()-*f.heard > limit
}

// become makes the packet what its flow says.
func (p *packet) become(t tuple) {
	p.raw = p.as(t)
	p.t = t
}

// goesOnWith finds a flow's direction that goes on with this packet.
func (m *model) goesOnWith(flows map[tuple]*flow, p *packet) *flow {
	f := flows[p.t]
	if f == nil || m.over(f, p.t.proto) {
		return nil
	}
	if p.t.proto == protoTCP {
		switch {
		case p.isSYN():
			if f.closed {
				return nil // its client uses the port again
			}
		case p.tcpFlags&(flagFIN|flagRST) != 0:
			f.closed = true
		default:
			f.spoken = true
		}
	}
	*f.heard = m.clock()
	m.used = *f.heard
	return f
}

// longest is how long a stream may be silent that nobody has closed.
const longest = 124 * time.Minute

// inUse tells whether any flow to a service may be alive: where not, none is looked for in what comes back from outside, nor
// in what goes straight to another container of the network.
func (m *model) inUse() bool { return m.used != 0 && m.clock()-m.used <= longest }

// answer gives what answers a flow to a service its frontend's name.
func (w *place) answer(p *packet) {
	switch {
	case p.later:
		f, ok := w.fragments[p.piece()]
		if w.known = ok && !(w.outside && w.inside(p.t.src.Addr())); w.known {
			t := f.becomes
			w.uplink = f.uplink
			p.become(tuple{netip.AddrPortFrom(t.src.Addr(), 0), netip.AddrPortFrom(t.dst.Addr(), 0), p.t.proto})
		}
	case p.whole() && p.isError():
		w.aboutService(p)
	case p.hasPorts():
		if f := w.goesOnWith(w.answers, p); f != nil {
			w.translate(p, f)
		}
	}
}

// translate makes the packet what its flow to a service says.
func (w *place) translate(p *packet, f *flow) {
	w.known, w.uplink = true, f.uplink
	w.follow(p, f.becomes, f.uplink)
	p.become(f.becomes)
}

// aboutService translates an error about what was translated: the other way round, for whoever sent that.
func (w *place) aboutService(p *packet) {
	q, ok := p.quoted()
	if !ok {
		return
	}
	f := w.answers[q.t.back()]
	if f == nil {
		f = w.requests[q.t.back()]
	}
	own := p.t.src.Addr() == q.t.dst.Addr()
	if f == nil || w.network != 0 && !own {
		return // only routers tell of what others were sent
	}
	if w.outside && w.inside(q.t.dst.Addr()) {
		return // and no router outside was on the way
	}
	src := p.t.src.Addr()
	if own {
		src = f.becomes.src.Addr()
	}
	w.known, w.uplink = true, f.uplink
	p.retell(src, f.becomes.dst.Addr(), &q, f.becomes.back())
}

// retell gives an error other addresses, and what it is about another tuple.
func (p *packet) retell(src, dst netip.Addr, q *packet, t tuple) {
	p.raw = p.asError(src, dst, q, t)
	p.t.src, p.t.dst = netip.AddrPortFrom(src, p.t.src.Port()), netip.AddrPortFrom(dst, p.t.dst.Port())
}

func (m *model) inPool(a netip.Addr) bool {
	return slices.ContainsFunc(m.pools, func(p netip.Prefix) bool { return p.Contains(a) })
}

// request gives what is for a virtual IP a backend.
func (w *place) request(p *packet) decision {
	head, isVIP := w.services[Frontend{Addr: p.t.dst.Addr()}]
	switch {
	case !isVIP && w.inPool(p.t.dst.Addr()):
		return w.refuse(p, "no-service", true).decided()
	case !isVIP:
		return w.direct(p)
	case head.Network != 0 && head.Network != w.network:
		return w.refuse(p, "not-member", true).decided()
	case p.isEcho() && p.whole():
		return w.pong(p).decided()
	case p.later:
		return dropped("no-fragment-head" + w.direction).decided()
	case !p.hasPorts():
		return w.refuse(p, "no-service", true).decided()
	}
	f := w.goesOnWith(w.requests, p)
	if f != nil && p.t.proto == protoUDP && !w.exists(f.backend) {
		f = nil // datagrams move on
	}
	if f != nil {
		w.translate(p, f)
		return undecided
	}
	if p.t.proto == protoTCP && !p.isSYN() {
		return w.refuse(p, "no-flow", true).decided()
	}
	s := head
	for _, front := range []Frontend{
		{Addr: p.t.dst.Addr(), Port: p.t.dst.Port(), Protocol: Protocol(p.t.proto)}, {Addr: p.t.dst.Addr(), Port: p.t.dst.Port()},
	} {
		if found, ok := w.services[front]; ok {
			s = found
			break
		}
	}
	if reason := w.begin(p, s); reason != "" {
		if slices.Contains([]string{"no-service", "no-backend"}, reason) {
			return w.refuse(p, reason, true).decided()
		}
		return dropped(reason + w.direction).decided()
	}
	return undecided
}

func (m *model) exists(backend uint32) bool { _, ok := m.backends[backend]; return ok }

// direct is for a packet to nobody's virtual IP: from a port that a flow to one has, no stream can begin.
func (w *place) direct(p *packet) decision {
	if !p.hasPorts() || p.t.proto == protoTCP && !p.isSYN() {
		return undecided
	}
	had := w.answers[p.t.back()]
	if had == nil {
		return undecided
	}
	if p.t.proto == protoTCP && !had.closed && !w.over(had, p.t.proto) {
		return dropped("ct-collision" + w.direction).decided()
	}
	delete(w.requests, had.becomes.back())
	delete(w.answers, p.t.back())
	return undecided
}

// begin enters a new flow to a service, or says why it cannot be. Which backend was chosen is told by the frame.
func (w *place) begin(p *packet, s Service) string {
	candidates := map[uint32]Backend{}
	for _, id := range append(slices.Clone(s.Slots), s.Reserve...) {
		if be, ok := w.backends[id]; ok {
			candidates[id] = be
		}
	}
	if len(candidates) == 0 {
		if s.ID == 0 {
			return "no-service"
		}
		return "no-backend"
	}
	out, ok := w.read(w.got)
	if ok && out.t.proto != p.t.proto { // a refusal of the way out quotes what the container sent
		out.t, ok = w.entered(p.t)
	}
	for _, id := range slices.Sorted(maps.Keys(candidates)) {
		be := candidates[id]
		sent := p.t
		port := p.t.dst.Port()
		if be.Port != 0 {
			port = be.Port
		}
		sent.dst = netip.AddrPortFrom(be.Addr, port)
		hairpin := be.Addr == p.t.src.Addr()
		if hairpin { // the answer has to come back here
			sent.src = netip.AddrPortFrom(p.t.dst.Addr(), p.t.src.Port())
		}
		taken := w.collides(p.t, sent)
		if taken || hairpin && s.Published {
			sent.src = netip.AddrPortFrom(sent.src.Addr(), out.t.src.Port())
			taken = out.t.src.Port() < 61000 || w.collides(p.t, sent)
		}
		if len(candidates) > 1 && (!ok || out.t.dst != sent.dst) {
			continue // another was chosen
		}
		if w.outside && s.Sources != nil && !w.leadsBack(be.Addr) {
			return "spoofed"
		}
		w.used = w.clock()
		if taken {
			return "ct-collision"
		}
		w.enter(p.t, sent, id)
		w.translate(p, &flow{becomes: sent})
		return ""
	}
	return "none of the candidates"
}

// collides tells whether answers to sent are another flow's already.
func (m *model) collides(request, sent tuple) bool {
	had := m.answers[sent.back()]
	if had == nil || had.closed || m.over(had, request.proto) {
		return false
	}
	return had.becomes.src != request.dst || had.becomes.dst.Port() != request.src.Port()
}

// leadsBack tells whether answers of a backend leave by where their requests come from (RFC 3704): on a LAN its slaves'
// are not the host's to route.
func (w *place) leadsBack(backend netip.Addr) bool {
	e, known := w.endpoints[backend]
	return !known || e.Parent != 0 || w.ifindex == w.wayOut
}

func (w *place) enter(request, sent tuple, backend uint32) {
	now := w.clock()
	w.answers[sent.back()] = &flow{becomes: request.back(), backend: backend, heard: &now}
	w.requests[request] = &flow{becomes: sent, backend: backend, heard: &now, within: !w.outside}
}

// refuse drops a packet and, where it may, tells its sender: a stream by a reset if port says so.
func (w *place) refuse(p *packet, reason string, port bool) judgement {
	o := dropped(reason + w.direction)
	switch {
	case p.later, p.isError():
		return o
	case p.t.proto == protoTCP && port:
		if p.tcpFlags&flagRST != 0 {
			return o
		}
		o.frame = w.reset(p)
	default:
		typ, code := uint8(3), uint8(1)
		if port {
			code = 3
		}
		if p.v6 {
			typ, code = 1, 3
			if port {
				code = 4
			}
		}
		o.frame = w.tell(p, p.t.dst.Addr(), typ, code, 0)
	}
	return o.told()
}

// told is a refusal of which the sender learns, if anything can be said of the packet.
func (o judgement) told() judgement {
	if o.frame != nil {
		o.verdict = verdictRedirect
	}
	return o
}

// reset is what RFC 9293, 3.5.2, answers a segment of no connection with.
func (w *place) reset(p *packet) []byte {
	s := segment{flags: flagRST}
	h := p.raw[p.l4:]
	if p.tcpFlags&flagACK != 0 {
		s.seq = binary.BigEndian.Uint32(h[8:])
	} else {
		length := uint32(p.end - p.l4 - int(h[12]>>4)*4)
		for _, f := range []uint8{flagSYN, flagFIN} {
			if p.tcpFlags&f != 0 {
				length++
			}
		}
		s.flags, s.ack = flagRST|flagACK, binary.BigEndian.Uint32(h[4:])+length
	}
	f := tcp(p.t.dst.Addr(), p.t.dst.Port(), p.t.src.Addr(), p.t.src.Port(), s)
	f.id = 0
	return f.macs(p.raw[6:12], p.raw[:6]).bytes()
}

// tell is an error about the packet, from an address of ours; nil if it has less than 64 bits behind its header.
func (w *place) tell(p *packet, from netip.Addr, typ, code uint8, word uint32) []byte {
	quote := p.raw[p.l3:]
	if n := min(p.l4-p.l3, 88) + 8; n <= len(quote) {
		quote = quote[:n]
	} else {
		return nil
	}
	f := icmp(from, p.t.src.Addr(), typ, code, word, quote)
	f.id = 0
	return f.macs(p.raw[6:12], p.raw[:6]).bytes()
}

// tooBig tells of what the way out takes.
func (w *place) tooBig(p *packet, from netip.Addr) []byte {
	typ, code := uint8(3), uint8(4)
	if p.v6 {
		typ, code = 2, 0
	}
	return w.tell(p, from, typ, code, uint32(w.largest))
}

// pong answers a ping.
func (w *place) pong(p *packet) judgement {
	out := slices.Clone(p.raw)
	was := []byte{out[p.l4], out[p.l4+1]}
	out[p.l4] = map[bool]uint8{false: 0, true: 129}[p.v6]
	adjust(out[p.l4+2:], was, out[p.l4:][:2])
	at, n := p.l3+12, 4
	if p.v6 {
		at, n = p.l3+8, 16
	}
	copy(out[at:], p.t.dst.Addr().AsSlice())
	copy(out[at+n:], p.t.src.Addr().AsSlice())
	return redirected(withMACs(out, p.raw[6:12], p.raw[:6]))
}

func (o judgement) String() string {
	return fmt.Sprintf("verdict %d, counted %q", o.verdict, o.reason)
}
