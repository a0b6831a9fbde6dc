// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// Frames are built and checked here without any code of the datapath, so that both can be wrong only
// in different ways.

const (
	protoICMP4, protoTCP, protoUDP, protoICMP6 = 1, 6, 17, 58
	extHopByHop, extRouting, extFragment       = 0, 43, 44
	extDestination                             = 60

	etherIP4, etherARP, etherIP6 = 0x0800, 0x0806, 0x86dd

	flagFIN, flagSYN, flagRST, flagPSH, flagACK = 1, 2, 4, 8, 16
)

// payload is what follows the IP header: a function, since checksums cover the addresses.
type payload func(src, dst netip.Addr) []byte

// frame is an Ethernet frame with an IP packet, described. Copies may be changed freely.
type frame struct {
	dst, src     net.HardwareAddr
	saddr, daddr netip.Addr
	proto        uint8
	body         payload
	ttl          uint8
	id           uint32
	fragment     uint16 // IPv4: flags and offset; IPv6: offset and M bit, when hasFragment
	hasFragment  bool
	options      []byte   // of IPv4, padded to four bytes
	ext          [][]byte // of IPv6: type, then the header without its first byte
	trailer      int      // bytes of Ethernet padding
	length       int      // what the IP header claims; 0 for the truth, -1 for 0
}

func (f frame) v6() bool { return f.saddr.Is6() }

// macs gives the frame other link-layer addresses.
func (f frame) macs(dst, src net.HardwareAddr) frame { f.dst, f.src = dst, src; return f }

// from gives the frame another source.
func (f frame) from(src netip.Addr) frame { f.saddr = src; return f }

// hops gives the frame another TTL or hop limit.
func (f frame) hops(n uint8) frame { f.ttl = n; return f }

// bytes is the frame on the wire, with every checksum in place.
func (f frame) bytes() []byte {
	return slices.Concat(f.ethernet(), f.packet(f.body(f.saddr, f.daddr)), make([]byte, f.trailer))
}

func (f frame) ethernet() []byte {
	etherType := uint16(etherIP4)
	if f.v6() {
		etherType = etherIP6
	}
	return binary.BigEndian.AppendUint16(slices.Concat(f.dst, f.src), etherType)
}

func (f frame) packet(body []byte) []byte {
	ttl := f.ttl
	if ttl == 0 {
		ttl = 64
	}
	if f.v6() {
		return f.packet6(body, ttl)
	}
	h := make([]byte, 20, 60)
	h[0] = 0x40 | byte(5+len(f.options)/4)
	length := len(h) + len(f.options) + len(body)
	binary.BigEndian.PutUint16(h[2:], uint16(f.claimed(length)))
	binary.BigEndian.PutUint16(h[4:], uint16(f.id))
	binary.BigEndian.PutUint16(h[6:], f.fragment)
	h[8], h[9] = ttl, f.proto
	copy(h[12:], f.saddr.AsSlice())
	copy(h[16:], f.daddr.AsSlice())
	h = append(h, f.options...)
	binary.BigEndian.PutUint16(h[10:], checksum(h))
	return append(h, body...)
}

func (f frame) packet6(body []byte, ttl uint8) []byte {
	chain := slices.Clone(f.ext)
	if f.hasFragment {
		chain = append(chain, binary.BigEndian.AppendUint32(
			[]byte{extFragment, 0, byte(f.fragment >> 8), byte(f.fragment)}, f.id))
	}
	h := make([]byte, 40)
	h[0] = 0x60
	h[6], h[7] = f.proto, ttl
	copy(h[8:], f.saddr.AsSlice())
	copy(h[24:], f.daddr.AsSlice())
	at := 6 // where the type of the next header goes
	for _, e := range chain {
		h[at] = e[0]
		at = len(h)
		h = append(append(h, f.proto), e[1:]...)
	}
	h = append(h, body...)
	binary.BigEndian.PutUint16(h[4:], uint16(f.claimed(len(h)-40)))
	return h
}

func (f frame) claimed(truth int) int {
	switch {
	case f.length < 0:
		return 0
	case f.length > 0:
		return f.length
	}
	return truth
}

// fragments cuts the frame's IP payload after n bytes, which 8 divides.
func (f frame) fragments(n int) (first, later frame) {
	body := f.body(f.saddr, f.daddr)
	first, later = f, f
	first.body = func(netip.Addr, netip.Addr) []byte { return body[:n] }
	later.body = func(netip.Addr, netip.Addr) []byte { return body[n:] }
	if f.v6() {
		first.hasFragment, first.fragment = true, 1
		later.hasFragment, later.fragment = true, uint16(n)
	} else {
		first.fragment, later.fragment = 0x2000, uint16(n/8)
	}
	return first, later
}

// ip describes a packet without link-layer addresses.
func ip(src, dst netip.Addr, proto uint8, body payload) frame {
	return frame{saddr: src, daddr: dst, proto: proto, body: body, id: 0x1234}
}

// segment is what a test says of a TCP segment.
type segment struct {
	flags    uint8
	seq, ack uint32
	window   uint16
	data     string
	offset   uint8 // in words; 0 for 5
}

func tcp(src netip.Addr, sport uint16, dst netip.Addr, dport uint16, s segment) frame {
	return ip(src, dst, protoTCP, func(src, dst netip.Addr) []byte {
		b := make([]byte, 20)
		binary.BigEndian.PutUint16(b, sport)
		binary.BigEndian.PutUint16(b[2:], dport)
		binary.BigEndian.PutUint32(b[4:], s.seq)
		binary.BigEndian.PutUint32(b[8:], s.ack)
		b[12], b[13] = 5<<4, s.flags
		if s.offset != 0 {
			b[12] = s.offset << 4
		}
		binary.BigEndian.PutUint16(b[14:], s.window)
		b = append(b, s.data...)
		binary.BigEndian.PutUint16(b[16:], pseudoChecksum(src, dst, protoTCP, b))
		return b
	})
}

func udp(src netip.Addr, sport uint16, dst netip.Addr, dport uint16, data string) frame {
	return ip(src, dst, protoUDP, func(src, dst netip.Addr) []byte {
		b := udpNoChecksum(sport, dport, data)(src, dst)
		sum := pseudoChecksum(src, dst, protoUDP, b)
		if sum == 0 {
			sum = 0xffff
		}
		binary.BigEndian.PutUint16(b[6:], sum)
		return b
	})
}

// udpNoChecksum is a datagram whose sender left the checksum out (IPv4 only).
func udpNoChecksum(sport, dport uint16, data string) payload {
	return func(netip.Addr, netip.Addr) []byte {
		b := make([]byte, 8, 8+len(data))
		binary.BigEndian.PutUint16(b, sport)
		binary.BigEndian.PutUint16(b[2:], dport)
		binary.BigEndian.PutUint16(b[4:], uint16(8+len(data)))
		return append(b, data...)
	}
}

// icmp is an ICMP message of either family: four bytes after the checksum, then the rest.
func icmp(src, dst netip.Addr, typ, code uint8, word uint32, rest []byte) frame {
	proto := uint8(protoICMP4)
	if src.Is6() {
		proto = protoICMP6
	}
	return ip(src, dst, proto, func(src, dst netip.Addr) []byte {
		b := append(make([]byte, 8), rest...)
		b[0], b[1] = typ, code
		binary.BigEndian.PutUint32(b[4:], word)
		sum := checksum(b)
		if src.Is6() {
			sum = pseudoChecksum(src, dst, proto, b)
		}
		binary.BigEndian.PutUint16(b[2:], sum)
		return b
	})
}

// echo is a ping or, with reply, its answer.
func echo(src, dst netip.Addr, reply bool, data string) frame {
	typ := uint8(8)
	if src.Is6() {
		typ = 128
	}
	if reply && src.Is6() {
		typ = 129
	} else if reply {
		typ = 0
	}
	return icmp(src, dst, typ, 0, 0x00420001, []byte(data))
}

// unreachable says that the quoted frame did not arrive: its port, or its host.
func unreachable(src, dst netip.Addr, port bool, quoted []byte) frame {
	typ, host, noPort := uint8(3), uint8(1), uint8(3)
	if src.Is6() {
		typ, host, noPort = 1, 3, 4
	}
	if port {
		return icmp(src, dst, typ, noPort, 0, quoted)
	}
	return icmp(src, dst, typ, host, 0, quoted)
}

// quote is what an ICMP error repeats of a frame: its IP header and 8 bytes more.
func (f frame) quote() []byte {
	p := f.packet(f.body(f.saddr, f.daddr))
	if f.v6() {
		return p[:48]
	}
	return p[:20+len(f.options)+8]
}

func checksum(b []byte) uint16 {
	var sum uint32
	for len(b) > 1 {
		sum += uint32(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

func pseudoChecksum(src, dst netip.Addr, proto uint8, body []byte) uint16 {
	b := slices.Concat(src.AsSlice(), dst.AsSlice())
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	b = append(b, 0, 0, 0, proto)
	return checksum(append(b, body...))
}

// verify recomputes every checksum of a frame. What it does not know it takes as it is.
func verify(b []byte) error {
	if len(b) < 14 {
		return errors.New("no Ethernet header")
	}
	switch etherType := binary.BigEndian.Uint16(b[12:]); etherType {
	case etherIP4:
		return verify4(b[14:])
	case etherIP6:
		return verify6(b[14:])
	}
	return nil
}

func verify4(p []byte) error {
	if len(p) < 20 || len(p) < int(p[0]&15)*4 {
		return errors.New("no IPv4 header")
	}
	hlen := int(p[0]&15) * 4
	if checksum(p[:hlen]) != 0 {
		return fmt.Errorf("IPv4 header checksum %#04x is off", p[10:12])
	}
	length := int(binary.BigEndian.Uint16(p[2:]))
	if length == 0 {
		length = len(p) // BIG TCP
	}
	if length < hlen || length > len(p) {
		return fmt.Errorf("IPv4 length %d of %d bytes", length, len(p))
	}
	if binary.BigEndian.Uint16(p[6:])&0x3fff != 0 {
		return nil // a fragment's checksum covers more than is here
	}
	src, _ := netip.AddrFromSlice(p[12:16])
	dst, _ := netip.AddrFromSlice(p[16:20])
	return verifyL4(src, dst, p[9], p[hlen:length])
}

func verify6(p []byte) error {
	if len(p) < 40 {
		return errors.New("no IPv6 header")
	}
	length := int(binary.BigEndian.Uint16(p[4:]))
	if 40+length > len(p) {
		return fmt.Errorf("IPv6 payload length %d of %d bytes", length, len(p)-40)
	}
	src, _ := netip.AddrFromSlice(p[8:24])
	dst, _ := netip.AddrFromSlice(p[24:40])
	next, body := p[6], p[40:]
	if length > 0 {
		body = body[:length]
	}
	for slices.Contains([]byte{extHopByHop, extRouting, extDestination, extFragment}, next) {
		if len(body) < 8 {
			return errors.New("no extension header")
		}
		if next == extFragment && binary.BigEndian.Uint16(body[2:])&0xfff9 != 0 {
			return nil
		}
		skip := (int(body[1]) + 1) * 8
		if next == extFragment {
			skip = 8
		}
		if len(body) < skip {
			return errors.New("no extension header")
		}
		next, body = body[0], body[skip:]
	}
	return verifyL4(src, dst, next, body)
}

func verifyL4(src, dst netip.Addr, proto uint8, body []byte) error {
	ok := true
	switch {
	case proto == protoUDP && src.Is4() && len(body) >= 8 && body[6] == 0 && body[7] == 0:
		return nil
	case proto == protoUDP && src.Is6() && len(body) >= 8 && body[6] == 0 && body[7] == 0:
		ok = false // IPv6 has no datagrams without a checksum
	case proto == protoTCP, proto == protoUDP, proto == protoICMP6 && src.Is6():
		ok = pseudoChecksum(src, dst, proto, body) == 0
	case proto == protoICMP4 && src.Is4():
		ok = checksum(body) == 0
	}
	if len(body) == 0 {
		return nil
	}
	if !ok {
		return fmt.Errorf("the checksum of protocol %d is off, from %s to %s", proto, src, dst)
	}
	quotes := proto == protoICMP4 && src.Is4() && slices.Contains([]byte{3, 11, 12}, body[0])
	if quotes && len(body) > 8 && body[8]>>4 == 4 && len(body) >= 8+int(body[8]&15)*4 &&
		checksum(body[8:][:int(body[8]&15)*4]) != 0 {
		return errors.New("the header checksum of the quoted packet is off")
	}
	return nil
}
