// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"net/netip"
	"slices"
)

// Networks of slaves, as docs/adr/0011-modes.md has them: programs inside each sandbox, and the host's own slave beside.

// fromSlave judges what a container sends by its slave, inside its sandbox.
func (m *model) fromSlave(in, got []byte) judgement {
	w := &place{model: m, direction: fromContainers, got: got}
	switch beAt(in, 12) {
	case etherARP:
		return w.arp(in)
	case etherIP4, etherIP6:
	default:
		return passes(in)
	}
	p, ok := m.read(in)
	if !ok {
		return dropped("malformed" + w.direction)
	}
	if p.isSolicitation() {
		return w.solicitation(&p)
	}
	own := m.endpoints[p.t.src.Addr()]
	w.sender, w.network = p.t.src.Addr(), own.Network
	if w.answer(&p); w.known {
		return w.bySlave(&p, own, true)
	}
	if d := w.request(&p); d.made {
		return d.judgement
	}
	return w.bySlave(&p, own, false)
}

// bySlave is where a packet goes on the slave's link, which delivers by MAC.
func (w *place) bySlave(p *packet, own Endpoint, answer bool) judgement {
	dst, known := w.endpoints[p.t.dst.Addr()]
	neighbour := known && !dst.Host
	switch {
	case !w.known && neighbour && dst.Network != w.network:
		if own.Via != 0 && own.Parent == 0 {
			return passes(p.raw) // nobody is there but the host, which judges
		}
		return dropped("isolated" + w.direction)
	case !w.known:
		return passes(p.raw)
	case answer && own.Via != 0 && (neighbour && dst.Network != w.network || !neighbour && w.uplink != 0 && w.uplink != own.Parent):
		return passes(withMACs(p.raw, own.HostMAC, p.raw[6:12])) // its client comes by the host
	case !neighbour && answer:
		return passes(p.raw) // it has the MAC of its way
	case !neighbour:
		return redirected(p.raw) // whose MAC the sandbox's routes find
	case p.t.dst.Addr() == w.sender:
		return redirected(withMACs(p.raw, dst.MAC, p.raw[6:12])) // back to itself
	}
	return passes(withMACs(p.raw, dst.MAC, p.raw[6:12]))
}

// toSlave judges what comes in by a slave, inside its sandbox: answers to what it had asked of a service.
func (m *model) toSlave(in, got []byte) judgement {
	if t := beAt(in, 12); t != etherIP4 && t != etherIP6 {
		return passes(in)
	}
	p, ok := m.read(in)
	if !ok {
		return passes(in) // as its LAN sends it
	}
	w := &place{model: m, direction: toContainers, got: got}
	w.answer(&p)
	return passes(p.raw)
}

// toHost judges what a slave sends to the host: at the host's own slave, or where ipvlan hands it to a private parent.
func (m *model) toHost(ifindex int, in, got []byte) judgement {
	i := m.interfaces[ifindex]
	w := &place{model: m, iface: &i, ifindex: ifindex, direction: fromContainers, got: got, network: i.Network}
	if in[0]&1 != 0 { // for many
		if w.abuses(in) {
			return dropped("multicast" + w.direction)
		}
		if asker, asks := asksForNeighbour(in); asks && !i.Private && m.endpoints[asker].Network != i.Network {
			return dropped("") // the device that has the address answers the LAN
		}
		return passes(in)
	}
	if t := beAt(in, 12); t != etherIP4 && t != etherIP6 {
		return passes(in)
	}
	p, ok := m.read(in)
	src, dst := p.t.src.Addr(), p.t.dst.Addr()
	if !ok {
		if i.Private || m.endpoints[dst].Host { // whose stack may make more of it
			return dropped("malformed" + w.direction)
		}
		return passes(in)
	}
	w.sender = src
	linkAlone := linkOnly(src)
	beyond := m.endpoints[dst].Host && dst != i.Gateway4 && dst != i.Gateway6
	switch {
	case !i.Private && (src.IsLoopback() || dst.IsLoopback()):
		return dropped("off-host" + w.direction)
	case i.Private && isMany(dst) && !findsNeighbours(&p):
		return dropped("multicast" + w.direction)
	case linkAlone && i.Private && !i.Egress && (beyond || w.publishedAtAll(&p)):
		return dropped("isolated" + w.direction)
	case linkAlone, isMany(dst):
		return w.stack(&p)
	}
	if d := w.answersOut(&p); d.made {
		return d.judgement
	}
	if i.Private && m.endpoints[src].Network != i.Network {
		return dropped("spoofed" + w.direction)
	}
	if !i.Private || i.Egress {
		if p.later || p.whole() && p.isError() {
			w.answer(&p)
		} else if d := w.publish(&p); d.made {
			return d.judgement
		}
	}
	switch e := m.endpoints[p.t.dst.Addr()]; {
	case w.known && !reaches(e), !w.known && !i.Private:
		return w.stack(&p)
	case w.known:
		return w.enters(&p)
	}
	return w.onwardByHost(&p)
}

// isMany tells whether an address is for more than one.
func isMany(a netip.Addr) bool {
	return a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// findsNeighbours tells whether a packet is one of the two without which there are no neighbours on a link (RFC 4861).
func findsNeighbours(p *packet) bool {
	return p.v6 && !p.later && p.t.proto == protoICMP6 && (p.icmpType == 135 || p.icmpType == 136)
}

// abuses tells whether a frame for many brings a packet for one, which the host's stack would take as if it were for it alone, or on a
// private parent one for many. There is nobody else who could mean that; on a LAN it is only kept from what others cannot have either.
func (w *place) abuses(in []byte) bool {
	if t := beAt(in, 12); t != etherIP4 && t != etherIP6 {
		return false
	}
	p, ok := w.read(in)
	src, dst := p.t.src.Addr(), p.t.dst.Addr()
	switch {
	case ok && isMany(dst):
		return w.iface.Private && !findsNeighbours(&p)
	case w.iface.Private, w.endpoints[dst].Host:
		return true
	}
	return ok && (src.IsLoopback() || dst.IsLoopback() || w.inPool(dst))
}

// stack leaves a packet to the host's, which knows of the host's slave alone.
func (w *place) stack(p *packet) judgement {
	if w.ifindex != w.iface.Via {
		return redirected(p.raw)
	}
	return passes(p.raw)
}

// onwardByHost is where a packet of a private parent's slave goes that is for no published port.
func (w *place) onwardByHost(p *packet) judgement {
	dst, known := w.endpoints[p.t.dst.Addr()]
	gateway := w.gateway(p.v6)
	switch {
	case known && dst.Host:
		if !w.iface.Egress && (p.t.dst.Addr() != gateway || w.publishedAtAll(p)) {
			return dropped("isolated" + w.direction)
		}
		if w.iface.Egress && p.t.proto == protoUDP {
			w.keep(p)
		}
		return w.stack(p)
	case known && dst.Network != w.network:
		return dropped("isolated" + w.direction)
	case known && reaches(dst):
		return redirected(withMACs(p.raw, dst.MAC, dst.HostMAC))
	case known, p.t.dst.Addr() == gateway:
		return w.stack(p)
	case w.inPool(p.t.dst.Addr()):
		return w.refuse(p, "no-service", false)
	case !w.iface.Egress, p.t.dst.Addr().IsLoopback():
		return w.refuse(p, "no-route", false)
	}
	o := w.out(p, p, false, false)
	if o.verdict == verdictPass {
		return w.stack(p)
	}
	return o
}

// handedOver tells whether ipvlan has handed a slave's frame to the parent, whose MAC both have.
func handedOver(in []byte) bool { return bytes.Equal(in[:6], in[6:12]) }

// answersOut sends a slave's answer to its client: by the device that it comes by, or into its sandbox.
func (w *place) answersOut(p *packet) decision {
	var f flow
	if p.later {
		found, ok := w.fragments[p.piece()]
		if !ok {
			return undecided
		}
		f = found
	} else {
		asked := p.t.back()
		if p.whole() && p.isError() {
			q, ok := p.quoted()
			if !ok {
				return undecided
			}
			asked = q.t
		}
		found := w.requests[asked]
		if found == nil {
			return undecided
		}
		slave := w.endpoints[found.becomes.dst.Addr()]
		if slave.Via == 0 || w.outside && slave.Parent != w.ifindex || !w.outside && slave.Via != w.iface.Via {
			return undecided // somebody else's, who answers elsewhere
		}
		f = *found
		w.follow(p, p.t, f.uplink)
	}
	if dst, known := w.endpoints[p.t.dst.Addr()]; known && reaches(dst) {
		return redirected(withMACs(p.raw, dst.MAC, dst.HostMAC)).decided()
	}
	if f.uplink == 0 {
		return undecided
	}
	if p.onWire() <= w.largest {
		return redirected(p.raw).decided()
	}
	o := dropped("too-big" + fromContainers)
	if !p.later && !p.isError() {
		p.become(f.becomes.back()) // as the slave sent it
		o.frame = w.tooBig(p, p.t.dst.Addr())
	}
	return o.told().decided()
}

// cameBy remembers by which device the client of a flow to a slave comes.
func (w *place) cameBy(p *packet) {
	back := w.answers[p.t.back()]
	if back == nil {
		return
	}
	back.uplink = w.ifindex
	if there := w.requests[back.becomes.back()]; there != nil {
		there.uplink = w.ifindex
	}
}

// asksForNeighbour tells who asks for the MAC of an address, if a frame does.
func asksForNeighbour(in []byte) (asker netip.Addr, asks bool) {
	switch beAt(in, 12) {
	case etherARP:
		if len(in) < l2+28 || beAt(in, l2+6) != 1 {
			return asker, false
		}
		return netip.AddrFrom4([4]byte(in[l2+14:])), true
	case etherIP6:
		p, ok := readPacket(in)
		return p.t.src.Addr(), ok && p.isSolicitation()
	}
	return asker, false
}

func (p *packet) isSolicitation() bool {
	return p.v6 && !p.later && p.t.proto == protoICMP6 && p.icmpType == 135
}

// setSlaves makes a network of slaves, whose host's slave is clientIf, on a private parent or on a LAN's, which leads out;
// foreign stays behind the backend's pair.
func (s *stage) setSlaves(private bool) {
	findSlaves(s.t)
	parent := parentIf
	if private {
		parent = 0
	}
	a := s.addresses
	other := Endpoint{Addr: a.backend2, IfIndex: 3003, Network: network1, MAC: backend2MAC, HostMAC: hostSlaveMAC, Via: clientIf, Parent: parent}
	if s.pick(3) == 2 { // beside another host's slave
		other.Network, other.Via, other.Parent = network2, backendIf, 0
	}
	list := []Endpoint{
		{Addr: a.client, IfIndex: 3001, Network: network1, MAC: clientMAC, HostMAC: hostSlaveMAC, Via: clientIf, Parent: parent},
		{Addr: a.backend, IfIndex: 3002, Network: network1, MAC: backendMAC, HostMAC: hostSlaveMAC, Via: clientIf, Parent: parent},
		other,
		{Addr: a.foreign, IfIndex: backendIf, Network: network2, Redirect: true, MAC: mac(5), HostMAC: mac(0x15)},
	}
	for i := range list {
		list[i].Open, list[i].Ping = s.pick(5) == 4, s.pick(5) == 4
	}
	if s.pick(8) > 0 {
		list = append(list, Endpoint{Addr: a.host, Host: true})
	}
	egress, masq := s.pick(4) > 0, s.pick(3) > 0
	four, six := addressesOf(false), addressesOf(true)
	guard := Interface{IfIndex: clientIf, Network: network1, Strict: true, MAC: hostSlaveMAC, Via: clientIf}
	pair := Interface{IfIndex: backendIf, Network: network2, Strict: true, MAC: mac(0x15), Egress: true, Masq4: masq, Masq6: masq}
	s.addInterface(pair)
	if private {
		list = append(list, Endpoint{Addr: a.gateway, Host: true})
		guard.Private, guard.Egress, guard.Masq4, guard.Masq6 = true, egress, egress && masq, egress && masq
		guard.Gateway4, guard.Gateway6 = four.gateway, six.gateway
		s.addInterface(guard)
		guard.IfIndex = parentIf
	} else {
		s.addUplink(Uplink{IfIndex: parentIf, SNAT4: four.host, SNAT6: six.host})
	}
	if private || guard.IfIndex == clientIf {
		s.addInterface(guard)
	}
	for _, e := range list {
		s.addEndpoint(e)
	}
}

// slaveSides are who sends at a step of a network of slaves: more often who is on one.
var slaveSides = []int{sideClient, sideClient, sideBackend, sideBackend, sideOutside, sideOutside, sideForeign, sideOutside}

// slaveHook chooses where a frame from a side is seen, and gives it the MACs that it has there.
func (s *stage) slaveHook(side int, in []byte) (hook, func(in, got []byte) judgement) {
	if side == sideForeign {
		return from(backendIf), func(in, got []byte) judgement { return s.fromContainer(backendIf, in, got) }
	}
	own := pickOf(&s.script, clientMAC, backendMAC)
	many := in[0]&1 != 0
	macs := func(dst, src []byte) {
		if !many {
			copy(in, dst)
		}
		copy(in[6:], src)
	}
	private := s.how == onPrivateParent
	if side == sideOutside {
		macs(hostSlaveMAC, mac(0x99))
		by := pickOf(&s.script, uplinkIf, parentIf)
		if private {
			by = uplinkIf
		}
		return hook{"host_ingress", at(by, by)}, func(in, got []byte) judgement { return s.fromUplink(by, in, got) }
	}
	host, other := hostSlaveMAC, mac(0x99)
	macs(pickOf(&s.script, host, other, host, other, host, other, broadcastMAC, everyNodeMAC), own)
	switch s.pick(8) {
	case 0, 1, 2: // in its own sandbox
		return fromSlave(), s.fromSlave
	case 3, 4:
		return toHost(), func(in, got []byte) judgement { return s.toHost(clientIf, in, got) }
	case 5: // ipvlan
		macs(own, own)
		if private {
			return handedUp(), func(in, got []byte) judgement { return s.toHost(parentIf, in, got) }
		}
		return fromParent(), func(in, got []byte) judgement { return s.fromUplink(parentIf, in, got) }
	case 6: // in the receiver's sandbox
		return hook{"lxc_egress", at(slaveIf, slaveIf)}, s.toSlave
	}
	return s.byHostSlave()
}

// byHostSlave is the host's slave where packets go out by it.
func (s *stage) byHostSlave() (hook, func(in, got []byte) judgement) {
	by := pickOf(&s.script, 0, uplinkIf, backendIf, parentIf)
	return hook{"lxc_egress", at(clientIf, by)}, func(in, got []byte) judgement { return s.toContainer(clientIf, by, in, got) }
}

// onward is where a frame that has come out is seen next, if it is by a program.
func (s *stage) onward(h hook, in []byte, verdict uint32) (hook, func(in, got []byte) judgement) {
	untouched := func(in, _ []byte) judgement { return passes(in) }
	dst := in[:6]
	switch {
	case h == fromSlave() && verdict == verdictRedirect && !bytes.Equal(dst, in[6:12]): // with the MAC of its next hop
		h.ctx.Cb[0] = 0x6d737401
		return h, untouched
	case h == fromSlave() && (bytes.Equal(dst, hostSlaveMAC) || dst[0]&1 != 0): // what is for many comes to the host, too
		return toHost(), func(in, got []byte) judgement { return s.toHost(clientIf, in, got) }
	case h == fromSlave(), h.program == "lxc_egress" && h.ctx.Ifindex == uint32(clientIf):
		return hook{"lxc_egress", at(slaveIf, slaveIf)}, s.toSlave
	case verdict == verdictRedirect && slices.ContainsFunc([][]byte{clientMAC, backendMAC}, func(m []byte) bool { return bytes.Equal(m, dst) }):
		return vouched(true), untouched
	}
	return hook{}, nil
}

// slaveStep sends a frame of somebody's, and has it go on to who sees it next.
func (s *stage) slaveStep(n int) {
	in, side := s.frame(slaveSides[s.pick(len(slaveSides))])
	if len(in) < s.least() {
		return
	}
	s.cut(in)
	h, judge := s.slaveHook(side, in)
	for judge != nil {
		got := s.see(n, h, in, judge)
		if got.verdict == verdictDrop || len(got.out) < s.least() {
			return
		}
		in = got.out
		h, judge = s.onward(h, in, got.verdict)
	}
}
