// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
)

// gateway is the address that the container's network has on the host, in the packet's family.
func (w *place) gateway(v6 bool) netip.Addr {
	if v6 {
		return w.iface.Gateway6
	}
	return w.iface.Gateway4
}

// onward is where a packet from a container goes that nobody has refused: to its network, to the host where that is
// not shut, and out by an uplink.
func (w *place) onward(p, came *packet, translated, answer bool) judgement {
	dst, known := w.endpoints[p.t.dst.Addr()]
	if known && !translated && w.iface.Egress && (dst.Host || dst.Network != w.network) {
		if d := w.publish(p); d.made {
			return d.judgement
		}
		translated = w.known
		dst, known = w.endpoints[p.t.dst.Addr()]
	}
	gateway := w.gateway(p.v6)
	switch {
	case w.shuns(p) && p.t.dst.Addr() == gateway:
		return dropped("isolated" + w.direction)
	case known && dst.Host:
		if !w.iface.Egress && (p.t.dst.Addr() != gateway || w.publishedAtAll(p)) {
			return dropped("isolated" + w.direction)
		}
		if w.iface.Egress && !translated && p.t.proto == protoUDP {
			w.keep(p) // its stack may send them on, to who answers
		}
		return passes(p.raw)
	case known && dst.Network != w.network && !translated:
		return dropped("isolated" + w.direction)
	case known && reaches(dst):
		return redirected(withMACs(p.raw, dst.MAC, dst.HostMAC))
	case known, p.t.dst.Addr() == gateway:
		return passes(p.raw)
	case w.iface.Egress && !p.t.dst.Addr().IsLoopback():
		return w.out(p, came, translated, answer)
	case translated:
		return passes(p.raw)
	}
	return w.refuse(p, "no-route", false)
}

// out sends a packet out of the host in place of its stack, as a router would; an answer keeps the address that it has
// been given.
func (w *place) out(p, came *packet, translated, answer bool) judgement {
	about := p
	if translated && !p.later && !p.isError() {
		about = came // the container knows no other
	}
	if p.t.dst.Addr() == addressesOf(p.v6).host {
		return passes(p.raw) // the kernel knows its own address, also while nobody has told of it
	}
	from := w.gateway(p.v6)
	if !from.IsValid() {
		from = about.t.dst.Addr()
	}
	if p.onWire() > w.largest {
		o := dropped("too-big" + w.direction)
		if !p.later && !p.isError() {
			o.frame = w.tooBig(about, from)
		}
		return o.told()
	}
	if p.ttl <= 1 {
		typ := map[bool]uint8{false: 11, true: 3}[p.v6]
		o := dropped("ttl" + w.direction)
		if !p.later && !p.isError() {
			o.frame = w.tell(about, from, typ, 0, 0)
		}
		if !w.masquerades(p.v6) && !answer {
			w.keep(p)
		}
		return o.told()
	}
	p.raw = aged(p.raw)
	switch {
	case answer:
	case w.masquerades(p.v6):
		if reason := w.masquerade(p); reason != "" {
			return dropped(reason + w.direction)
		}
	default:
		w.keep(p)
	}
	return redirected(p.raw)
}

func (w *place) masquerades(v6 bool) bool {
	return v6 && w.iface.Masq6 || !v6 && w.iface.Masq4
}

// keep enters a flow that leaves as it is, so that its answers are let in.
func (w *place) keep(p *packet) {
	if p.later || p.isICMP() && !p.isEcho() {
		return
	}
	w.left[p.t] = &flow{becomes: p.t}
	w.returns[p.t.back()] = &flow{becomes: p.t.back()}
}

// masquerade gives what leaves the uplink's address and a port that nobody has there; the frame tells which.
func (w *place) masquerade(p *packet) string {
	addr := w.uplinks[w.wayOut].SNAT4
	if p.v6 {
		addr = w.uplinks[w.wayOut].SNAT6
	}
	switch {
	case p.later:
		t, ok := w.leftPieces[p.piece()]
		if !ok {
			return "no-fragment-head"
		}
		p.become(tuple{netip.AddrPortFrom(t.src.Addr(), 0), netip.AddrPortFrom(t.dst.Addr(), 0), p.t.proto})
		return ""
	case p.whole() && p.isError():
		q, ok := p.quoted()
		if !ok || q.t.dst.Addr() != p.t.src.Addr() || w.left[q.t.back()] == nil {
			return "no-route"
		}
		now := w.left[q.t.back()].becomes
		p.retell(now.src.Addr(), p.t.dst.Addr(), &q, now.back())
		return ""
	case p.isEchoReply():
		if e := w.endpoints[p.t.src.Addr()]; !e.Open && !e.Ping {
			return "no-route"
		}
		w.leave(p, p.t)
		return ""
	case !p.hasPorts() && !p.isEcho():
		return "no-route"
	}
	if f := w.left[p.t]; f != nil && f.becomes.src.Addr() == addr {
		w.leave(p, f.becomes)
		return ""
	}
	if !addr.IsValid() {
		return "no-route"
	}
	out, ok := w.read(w.got)
	if !ok || out.t.src.Port() < 61000 {
		return "no port above 61000"
	}
	now := tuple{netip.AddrPortFrom(addr, out.t.src.Port()), p.t.dst, p.t.proto}
	if w.returns[now.back()] != nil {
		return "a port that another flow has"
	}
	w.left[p.t] = &flow{becomes: now}
	w.returns[now.back()] = &flow{becomes: p.t.back()}
	w.leave(p, now)
	return ""
}

func (w *place) leave(p *packet, now tuple) {
	if p.first {
		w.leftPieces[p.piece()] = now
	}
	p.become(now)
}

// fromUplink judges what comes from outside.
func (m *model) fromUplink(ifindex int, in, got []byte) judgement {
	if t := beAt(in, 12); t != etherIP4 && t != etherIP6 {
		return passes(in)
	}
	w := &place{model: m, ifindex: ifindex, direction: toContainers, got: got, outside: true}
	p, ok := m.read(in)
	dst := p.t.dst.Addr()
	if !ok { // the host's stack may make more of it
		if m.endpoints[dst].Host {
			return dropped("malformed" + w.direction)
		}
		return passes(in)
	}
	if m.inPool(dst) || dst.IsLoopback() || p.t.src.Addr().IsLoopback() {
		return dropped("off-host" + w.direction)
	}
	w.sender = p.t.src.Addr()
	if handedOver(in) {
		if d := w.answersOut(&p); d.made {
			return d.judgement
		}
	}
	// a port that masqueraded flows may have is looked for among these first
	first := p.hasPorts() && p.t.dst.Port() < 61000
	if first && w.goesOn(&p) {
		return w.enters(&p)
	}
	if w.forged {
		return dropped("spoofed" + w.direction)
	}
	if w.returned(&p) {
		if w.inUse() {
			w.answer(&p) // of a service whose backend is outside
		}
		return w.enters(&p)
	}
	if w.forged {
		return dropped("spoofed" + w.direction)
	}
	if p.later || p.isError() { // streams and datagrams to the outside have come back by now
		w.answer(&p)
		if !w.known {
			return w.open(&p)
		}
		if p.later { // its head may have come back to a service whose backend is outside
			w.answer(&p)
		}
		return w.enters(&p)
	}
	if d := w.publish(&p); d.made {
		return d.judgement
	}
	if w.known {
		return w.enters(&p)
	}
	return w.open(&p)
}

// linkOnly are sources that no router passes on.
func linkOnly(src netip.Addr) bool {
	return src.Is6() && src.IsLinkLocalUnicast() || src.IsUnspecified()
}

// open lets in what is for a container that all outside may reach, or ping.
func (w *place) open(p *packet) judgement {
	e, known := w.endpoints[p.t.dst.Addr()]
	tcpOrUDP := p.t.proto == protoTCP || p.t.proto == protoUDP
	forged := w.inside(p.t.src.Addr()) || linkOnly(p.t.src.Addr()) || findsNeighbours(p)
	if !known || e.Host || tcpOrUDP || forged || !e.Open && !(e.Ping && p.isEcho()) {
		return passes(p.raw)
	}
	w.follow(p, p.t, 0)
	return w.enters(p)
}

// enters hands a packet into the sandbox that it is for.
func (w *place) enters(p *packet) judgement {
	e, known := w.endpoints[p.t.dst.Addr()]
	if !known || !reaches(e) {
		return passes(p.raw)
	}
	if w.outside && e.Via != 0 {
		w.cameBy(p)
	}
	return redirected(withMACs(p.raw, e.MAC, e.HostMAC))
}

// returned gives what comes back to a masqueraded flow, or tells of one, its container's address.
func (w *place) returned(p *packet) bool {
	switch {
	case p.later:
		return false // answer() knows their heads
	case p.whole() && p.isError():
		q, ok := p.quoted()
		if !ok {
			return false
		}
		f := w.returns[q.t.back()]
		if f == nil || w.inside(q.t.dst.Addr()) {
			return false
		}
		p.retell(p.t.src.Addr(), f.becomes.dst.Addr(), &q, f.becomes.back())
		return true
	case p.isICMP() && !p.isEchoReply():
		return false
	}
	f := w.returns[p.t]
	if f == nil {
		return false
	}
	if w.forged = w.inside(p.t.src.Addr()); w.forged {
		return false
	}
	w.follow(p, f.becomes, 0)
	p.become(f.becomes)
	return true
}

// goesOn finds the flow to a published port that the packet is of.
func (w *place) goesOn(p *packet) bool {
	f := w.goesOnWith(w.requests, p)
	if f == nil || p.t.proto == protoUDP && f.backend != 0 && !w.exists(f.backend) {
		return false
	}
	if w.forged = w.outside && f.within; w.forged {
		return false
	}
	w.translate(p, f)
	return true
}

// publish gives what is for a published port its backend.
func (w *place) publish(p *packet) decision {
	if !p.hasPorts() {
		return undecided
	}
	if w.goesOn(p) {
		return undecided
	}
	if w.forged {
		return dropped("spoofed" + w.direction).decided()
	}
	dst, known := w.endpoints[p.t.dst.Addr()]
	if p.t.proto == protoTCP && !p.isSYN() || !known {
		return undecided
	}
	s, ok := w.publishedAt(p.t.dst.Addr(), p, dst.Host)
	open := dst.Open && w.outside
	if !ok && !open {
		return undecided
	}
	if w.outside && w.inside(p.t.src.Addr()) {
		return dropped("spoofed" + w.direction).decided()
	}
	if ok && s.Sources != nil && !slices.ContainsFunc(s.Sources, func(in netip.Prefix) bool { return in.Contains(p.t.src.Addr()) }) {
		return dropped("source" + w.direction).decided()
	}
	if !ok {
		w.known = true
		w.follow(p, p.t, 0)
		w.used = w.clock()
		if w.collides(p.t, p.t) {
			return dropped("ct-collision" + w.direction).decided()
		}
		w.enter(p.t, p.t, 0)
		return undecided
	}
	switch reason := w.begin(p, s); reason {
	case "":
		return undecided
	case "no-backend":
		return w.refuse(p, reason, true).decided()
	default:
		return dropped(reason + w.direction).decided()
	}
}

// publishedAt finds the service that is published at an address and the packet's port, or at all of the host's.
func (m *model) publishedAt(a netip.Addr, p *packet, all bool) (Service, bool) {
	front := Frontend{Addr: a, Port: p.t.dst.Port(), Protocol: Protocol(p.t.proto)}
	s, ok := m.services[front]
	if !ok && all {
		front.Addr = netip.IPv4Unspecified()
		if a.Is6() {
			front.Addr = netip.IPv6Unspecified()
		}
		s, ok = m.services[front]
	}
	return s, ok && s.Published
}

// publishedAtAll tells whether anybody publishes the port that the packet is for, in either family.
func (w *place) publishedAtAll(p *packet) bool {
	if _, ok := w.publishedAt(p.t.dst.Addr(), p, true); ok {
		return true
	}
	other := netip.IPv6Unspecified()
	if p.v6 {
		other = netip.IPv4Unspecified()
	}
	_, ok := w.publishedAt(other, p, false)
	return ok
}

// answersFor tells whether the host's end answers a container that looks for an address's neighbour.
func (w *place) answersFor(a netip.Addr) bool {
	if w.iface == nil { // on its LAN a slave finds all others
		return w.inPool(a)
	}
	if a == w.gateway(a.Is6()) {
		return true
	}
	if e, ok := w.endpoints[a]; ok {
		return e.Network == w.iface.Network && e.IfIndex != w.ifindex
	}
	return w.inPool(a)
}

// ends is what becomes of a question that nobody answers here: others do on a slave's LAN.
func (w *place) ends(in []byte, reason string) judgement {
	if w.iface == nil {
		return passes(in)
	}
	return dropped(reason)
}

// mac is what questions are answered with: a slave's own, since nothing that is for it leaves the sandbox.
func (w *place) mac(in []byte) []byte {
	if w.iface == nil {
		return in[6:12]
	}
	return w.iface.MAC
}

// arp answers a container's question; all else of ARP ends here.
func (w *place) arp(in []byte) judgement {
	if len(in) < l2+28 || !bytes.Equal(in[l2:][:6], []byte{0, 1, 8, 0, 6, 4}) {
		return w.ends(in, "malformed"+w.direction)
	}
	asks, sender, target := beAt(in, l2+6) == 1, netip.AddrFrom4([4]byte(in[l2+14:])), netip.AddrFrom4([4]byte(in[l2+24:]))
	if !asks || sender.IsUnspecified() || sender == target || !w.answersFor(target) {
		return w.ends(in, "")
	}
	out := slices.Concat(in[l2+8:][:6], w.mac(in), []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 2}, w.mac(in), in[l2+24:][:4], in[l2+8:][:10], in[l2+28:])
	return redirected(out)
}

// solicitation answers a container's question in IPv6 (RFC 4861, 7.2.4).
func (w *place) solicitation(p *packet) judgement {
	if p.ttl != 255 || !p.whole() || p.l4+24 > len(p.raw) {
		return w.ends(p.raw, "malformed"+w.direction)
	}
	target := netip.AddrFrom16([16]byte(p.raw[p.l4+8:]))
	if p.t.src.Addr().IsUnspecified() || !w.answersFor(target) {
		return w.ends(p.raw, "")
	}
	body := slices.Concat(target.AsSlice(), []byte{2, 1}, w.mac(p.raw))
	f := icmp(target, p.t.src.Addr(), 136, 0, binary.BigEndian.Uint32([]byte{0xe0, 0, 0, 0}), body).hops(255)
	return redirected(f.macs(p.raw[6:12], w.mac(p.raw)).bytes())
}
