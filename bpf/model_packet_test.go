// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// The model says what the programs have to do with a frame. It is written from what the documents promise, in terms of
// flows and not of maps; test frames are read and written here without the datapath's code.

// tuple is what a flow is known by on one side. An echo's id is its asker's port.
type tuple struct {
	src, dst netip.AddrPort
	proto    uint8
}

// back is the tuple of an answer.
func (t tuple) back() tuple { return tuple{t.dst, t.src, t.proto} }

// packet is a frame that has been read.
type packet struct {
	raw         []byte
	v6          bool
	t           tuple
	l3, l4, end int
	first       bool // of fragments
	later       bool // no port is known
	id          uint32
	tcpFlags    uint8
	icmpType    uint8
	ttl         uint8
	header      int // length of the upper protocol's, of TCP and UDP
	segment     int // bytes that each of the segments has which the frame is still to be cut into; 0 for a packet
}

const l2 = 14

func beAt(b []byte, at int) uint16 { return binary.BigEndian.Uint16(b[at:]) }

// readPacket reads an Ethernet frame. What is no packet as RFC 791 or 8200 have it, or beyond what the datapath looks
// through, is malformed; dst is known as soon as it has been read.
func readPacket(b []byte) (p packet, ok bool) { return readSegments(b, 0) }

// readSegments reads a frame that is still to be cut. Over 64 KiB its header says length 0 (BIG TCP).
func readSegments(b []byte, segment int) (p packet, ok bool) {
	p = packet{raw: b, l3: l2, v6: beAt(b, 12) == etherIP6, segment: segment}
	if p.v6 {
		ok = p.read6()
	} else {
		ok = p.read4()
	}
	return p, ok && (p.later || p.readPorts())
}

func (p *packet) read4() bool {
	h := p.raw[p.l3:]
	if len(h) < 20 {
		return false
	}
	hlen, length := int(h[0]&15)*4, int(beAt(h, 2))
	if length == 0 && p.segment > 0 {
		length = len(h)
	}
	if h[0]>>4 != 4 || hlen < 20 || length < hlen || length > len(h) {
		return false
	}
	p.t.src, p.t.dst = port4(h[12:], 0), port4(h[16:], 0)
	p.t.proto, p.ttl, p.l4, p.end = h[9], h[8], p.l3+hlen, p.l3+length
	flags := beAt(h, 6)
	p.later, p.first = flags&0x1fff != 0, flags&0x3fff == 0x2000
	if p.later || p.first {
		p.id = uint32(beAt(h, 4))
	}
	return true
}

func port4(b []byte, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b)), port)
}

func (p *packet) read6() bool {
	h := p.raw[p.l3:]
	if len(h) < 40 || h[0]>>4 != 6 || int(beAt(h, 4)) > len(h)-40 {
		return false
	}
	src, dst := netip.AddrFrom16([16]byte(h[8:])), netip.AddrFrom16([16]byte(h[24:]))
	if src.Is4In6() || dst.Is4In6() {
		return false
	}
	p.t.src, p.t.dst = netip.AddrPortFrom(src, 0), netip.AddrPortFrom(dst, 0)
	p.ttl, p.end = h[7], p.l3+40+int(beAt(h, 4))
	if beAt(h, 4) == 0 && p.segment > 0 {
		p.end = len(p.raw)
	}
	next, at := h[6], p.l3+40
	for n := 0; slices.Contains([]byte{extHopByHop, extRouting, extDestination, extFragment}, next) && !p.later; n++ {
		if n == 6 || at+8 > len(p.raw) {
			return false
		}
		e := p.raw[at:]
		if next == extFragment {
			p.id = binary.BigEndian.Uint32(e[4:])
			p.later = beAt(e, 2)&0xfff8 != 0
			p.first = !p.later && (p.first || beAt(e, 2)&1 != 0)
			at += 8
		} else {
			at += (int(e[1]) + 1) * 8
		}
		next = e[0]
	}
	p.t.proto, p.l4 = next, at
	return true
}

// readPorts reads what upper protocols have first.
func (p *packet) readPorts() bool {
	need := map[uint8]int{protoTCP: 20, protoUDP: 8, protoICMP4: 8, protoICMP6: 8}[p.t.proto]
	if need == 0 {
		return true
	}
	if p.l4+need > p.end {
		return false
	}
	h := p.raw[p.l4:]
	switch p.t.proto {
	case protoTCP:
		if words := int(h[12] >> 4); words < 5 || p.l4+words*4 > p.end {
			return false
		}
		p.tcpFlags, p.header = h[13], int(h[12]>>4)*4
		p.setPorts(beAt(h, 0), beAt(h, 2))
	case protoUDP:
		p.header = 8
		p.setPorts(beAt(h, 0), beAt(h, 2))
	default:
		p.icmpType = h[0]
		if p.isEcho() {
			p.setPorts(beAt(h, 4), 0)
		} else if p.isEchoReply() {
			p.setPorts(0, beAt(h, 4))
		}
	}
	return true
}

func (p *packet) setPorts(src, dst uint16) {
	p.t.src, p.t.dst = netip.AddrPortFrom(p.t.src.Addr(), src), netip.AddrPortFrom(p.t.dst.Addr(), dst)
}

// onWire is how long a packet of the frame's is.
func (p *packet) onWire() int {
	if p.segment > 0 {
		return p.l4 - p.l3 + p.header + p.segment
	}
	return p.end - p.l3
}

func (p *packet) isICMP() bool {
	return p.v6 && p.t.proto == protoICMP6 || !p.v6 && p.t.proto == protoICMP4
}
func (p *packet) isEcho() bool {
	return !p.later && p.isICMP() && p.icmpType == map[bool]uint8{false: 8, true: 128}[p.v6]
}
func (p *packet) isEchoReply() bool {
	return !p.later && p.isICMP() && p.icmpType == map[bool]uint8{false: 0, true: 129}[p.v6]
}
func (p *packet) isError() bool {
	return !p.later && p.isICMP() && slices.Contains(map[bool][]uint8{false: {3, 11, 12}, true: {1, 2, 3, 4}}[p.v6], p.icmpType)
}
func (p *packet) misleads() bool { // about routers and neighbours
	return !p.later && p.isICMP() && slices.Contains(map[bool][]uint8{false: {5}, true: {134, 136, 137}}[p.v6], p.icmpType)
}
func (p *packet) whole() bool    { return !p.first && !p.later }
func (p *packet) hasPorts() bool { return !p.later && (p.t.proto == protoTCP || p.t.proto == protoUDP) }
func (p *packet) isSYN() bool    { return p.tcpFlags&(flagSYN|flagACK) == flagSYN }

// quoted reads the packet that an error is about, of which 64 bits behind its header are enough.
func (p *packet) quoted() (q packet, ok bool) {
	q = packet{raw: p.raw[:p.end], l3: p.l4 + 8, v6: p.v6}
	h := q.raw[q.l3:]
	if q.v6 {
		if len(h) < 40 || h[0]>>4 != 6 {
			return q, false
		}
		q.t.src, q.t.dst = netip.AddrPortFrom(netip.AddrFrom16([16]byte(h[8:])), 0), netip.AddrPortFrom(netip.AddrFrom16([16]byte(h[24:])), 0)
		q.t.proto, q.l4 = h[6], q.l3+40
		if q.t.proto == extFragment && len(h) >= 48 {
			if beAt(h, 42)&0xfff8 != 0 {
				return q, false
			}
			q.t.proto, q.l4 = h[40], q.l4+8
		}
	} else {
		if len(h) < 20 || h[0]>>4 != 4 || h[0]&15 < 5 || beAt(h, 6)&0x1fff != 0 {
			return q, false
		}
		q.t.src, q.t.dst, q.t.proto, q.l4 = port4(h[12:], 0), port4(h[16:], 0), h[9], q.l3+int(h[0]&15)*4
	}
	if q.l4+8 > len(q.raw) {
		return q, false
	}
	h = q.raw[q.l4:]
	switch {
	case q.t.proto == protoTCP || q.t.proto == protoUDP:
		q.setPorts(beAt(h, 0), beAt(h, 2))
		return q, true
	case q.isICMP():
		q.icmpType = h[0]
		if q.isEcho() {
			q.setPorts(beAt(h, 4), 0)
		} else {
			q.setPorts(0, beAt(h, 4))
		}
		return q, q.isEcho() || q.isEchoReply()
	}
	return q, false
}

// as is the frame with another tuple, and with every checksum that covers it set right (RFC 1624).
func (p *packet) as(t tuple) []byte {
	out := slices.Clone(p.raw)
	p.rewrite(out, t, p.later)
	return out
}

// rewrite writes a tuple into the packet's place in a frame, and returns what its bytes' sum has changed by.
func (p *packet) rewrite(b []byte, t tuple, addressesOnly bool) {
	addrs := p.l3 + 12
	if p.v6 {
		addrs = p.l3 + 8
	}
	was, now := slices.Concat(p.t.src.Addr().AsSlice(), p.t.dst.Addr().AsSlice()), slices.Concat(t.src.Addr().AsSlice(), t.dst.Addr().AsSlice())
	copy(b[addrs:], now)
	if !p.v6 {
		adjust(b[p.l3+10:], was, now)
	}
	if addressesOnly {
		return
	}
	covers := map[uint8]int{protoTCP: 16, protoUDP: 6, protoICMP6: 2}[p.t.proto]
	none := p.t.proto == protoUDP && beAt(b, p.l4+6) == 0 // its sender made none
	if p.t.proto == protoICMP6 && !p.v6 {
		covers = 2 // by its number alone the protocol has a checksum there
	}
	ports, at := b[p.l4:], 0
	switch {
	case p.isEcho(), p.isEchoReply():
		at = 4
	case p.t.proto != protoTCP && p.t.proto != protoUDP:
		at = -1
	}
	var old, fresh []byte
	switch at {
	case 4:
		old = slices.Clone(ports[4:6])
		fresh = binary.BigEndian.AppendUint16(nil, t.src.Port()|t.dst.Port())
	case 0:
		old = slices.Clone(ports[:4])
		fresh = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, t.src.Port()), t.dst.Port())
	}
	if at >= 0 {
		copy(ports[at:], fresh)
	}
	switch {
	case none:
	case covers != 0:
		adjust(ports[covers:], append(was, old...), append(now, fresh...))
		if p.t.proto == protoUDP && beAt(ports, 6) == 0 {
			ports[6], ports[7] = 0xff, 0xff
		}
	case p.isICMP():
		adjust(ports[2:], old, fresh)
	}
}

// adjust makes a checksum right after some of what it covers was changed.
func adjust(sum, was, now []byte) {
	s := uint64(^beAt(sum, 0))
	for i := 0; i+1 < len(was); i += 2 {
		s += uint64(^beAt(was, i))
	}
	for i := 0; i+1 < len(now); i += 2 {
		s += uint64(beAt(now, i))
	}
	for s>>16 != 0 {
		s = s>>16 + s&0xffff
	}
	binary.BigEndian.PutUint16(sum, ^uint16(s))
}

// asError is the error with other addresses, about a packet of another tuple.
func (p *packet) asError(src, dst netip.Addr, q *packet, t tuple) []byte {
	out := slices.Clone(p.raw)
	qaddrs, ports := out[q.l3+12:][:8], out[q.l4:][:4]
	if p.v6 {
		qaddrs = out[q.l3+8:][:32]
	}
	if q.isICMP() {
		ports = out[q.l4+4:][:2]
	}
	sum := out[p.l4+2:]
	was := slices.Concat(qaddrs, ports)
	copy(qaddrs, slices.Concat(t.src.Addr().AsSlice(), t.dst.Addr().AsSlice()))
	if q.isICMP() {
		binary.BigEndian.PutUint16(ports, t.src.Port()|t.dst.Port())
	} else {
		binary.BigEndian.PutUint16(ports, t.src.Port())
		binary.BigEndian.PutUint16(ports[2:], t.dst.Port())
	}
	adjust(sum, was, slices.Concat(qaddrs, ports))
	if !p.v6 { // the quoted header's checksum, which the message's covers in its turn
		header := out[q.l3+10:][:2]
		old := slices.Clone(header)
		adjust(header, was[:8], qaddrs)
		adjust(sum, old, header)
	}
	outer := packet{raw: out, v6: p.v6, t: p.t, l3: p.l3, l4: p.l4, end: p.end, icmpType: p.icmpType}
	outer.rewrite(out, tuple{netip.AddrPortFrom(src, 0), netip.AddrPortFrom(dst, 0), p.t.proto}, false)
	return out
}

// aged is a frame with one hop less to live.
func aged(b []byte) []byte {
	out := slices.Clone(b)
	if beAt(b, 12) == etherIP6 {
		out[l2+7]--
		return out
	}
	old := slices.Clone(out[l2+8:][:2])
	out[l2+8]--
	adjust(out[l2+10:], old, out[l2+8:][:2])
	return out
}

// withMACs is a frame with other link-layer addresses.
func withMACs(b []byte, dst, src []byte) []byte {
	return slices.Concat(dst, src, b[12:])
}
