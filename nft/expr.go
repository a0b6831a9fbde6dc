// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// reg is the first of the kernel's 4-byte registers; an address fills one or four of them, and every part
// of a concatenation begins a new one.
const reg = unix.NFT_REG32_00

// family is what differs between IPv4 and IPv6.
type family struct {
	proto      uint32 // NFPROTO
	icmp, echo byte
	saddr      uint32 // offsets in the header
	daddr      uint32
	addr       uint32 // bytes of an address
	kind       nftables.SetDatatype
	suffix     string // of names
	icmpPort   uint8  // codes of ICMP errors
	icmpHost   uint8
}

var families = [2]family{
	{unix.NFPROTO_IPV4, unix.IPPROTO_ICMP, 8, 12, 16, 4, nftables.TypeIPAddr, "4", 3, 1},
	{unix.NFPROTO_IPV6, unix.IPPROTO_ICMPV6, 128, 8, 24, 16, nftables.TypeIP6Addr, "6", 4, 3},
}

func familyOf(a netip.Addr) *family {
	if a.Is4() {
		return &families[0]
	}
	return &families[1]
}

// after is the register that follows an address at reg.
func (f *family) after() uint32 { return reg + f.addr/4 }

// rule joins the parts of a rule.
func rule(parts ...any) (out []expr.Any) {
	for _, p := range parts {
		switch p := p.(type) {
		case []expr.Any:
			out = append(out, p...)
		case expr.Any:
			out = append(out, p)
		}
	}
	return out
}

func equals(r uint32, data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: r, Data: data}
}

func differs(r uint32, data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpNeq, Register: r, Data: data}
}

func loads(key expr.MetaKey, r uint32) expr.Any { return &expr.Meta{Key: key, Register: r} }

func (f *family) is() []expr.Any {
	return []expr.Any{loads(expr.MetaKeyNFPROTO, reg), equals(reg, []byte{byte(f.proto)})}
}

func protocolIs(p byte) []expr.Any {
	return []expr.Any{loads(expr.MetaKeyL4PROTO, reg), equals(reg, []byte{p})}
}

// isEcho matches echo requests.
func (f *family) isEcho() []expr.Any {
	return rule(protocolIs(f.icmp),
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1}, equals(reg, []byte{f.echo}))
}

func (f *family) loadsDaddr(r uint32) expr.Any {
	return &expr.Payload{DestRegister: r, Base: expr.PayloadBaseNetworkHeader, Offset: f.daddr, Len: f.addr}
}

func (f *family) loadsSaddr(r uint32) expr.Any {
	return &expr.Payload{DestRegister: r, Base: expr.PayloadBaseNetworkHeader, Offset: f.saddr, Len: f.addr}
}

func loadsDport(r uint32) expr.Any {
	return &expr.Payload{DestRegister: r, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}
}

// isIn matches addresses, in reg, of a prefix.
func (f *family) isIn(p netip.Prefix) []expr.Any {
	mask := make([]byte, f.addr)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return []expr.Any{
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: f.addr, Mask: mask, Xor: make([]byte, f.addr)},
		equals(reg, p.Masked().Addr().AsSlice()),
	}
}

func in(s *nftables.Set) expr.Any {
	return &expr.Lookup{SourceRegister: reg, SetName: s.Name, SetID: s.ID}
}

// follows gives the verdict that a map has for what is in the registers.
func follows(s *nftables.Set) expr.Any {
	return &expr.Lookup{SourceRegister: reg, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: s.Name, SetID: s.ID}
}

func verdict(kind expr.VerdictKind, chain string) expr.Any {
	return &expr.Verdict{Kind: kind, Chain: chain}
}

var (
	accepts = verdict(expr.VerdictAccept, "")
	dropped = verdict(expr.VerdictDrop, "")
	returns = verdict(expr.VerdictReturn, "")
)

func jumps(chain string) expr.Any { return verdict(expr.VerdictJump, chain) }
func going(chain string) expr.Any { return verdict(expr.VerdictGoto, chain) }

// marks sets the mark of a flow.
func marks(mark uint32) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: reg, Data: binaryutil.NativeEndian.PutUint32(mark)},
		&expr.Ct{Key: expr.CtKeyMARK, Register: reg, SourceRegister: true},
	}
}

func isMarked(mark uint32) []expr.Any {
	return []expr.Any{&expr.Ct{Key: expr.CtKeyMARK, Register: reg}, equals(reg, binaryutil.NativeEndian.PutUint32(mark))}
}

// stateIs matches flows whose state has one of the bits.
func stateIs(bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: reg},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		differs(reg, make([]byte, 4)),
	}
}

func rejects(code uint8) expr.Any {
	return &expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: code}
}

func resets() expr.Any { return &expr.Reject{Type: unix.NFT_REJECT_TCP_RST} }

// ifname is the name of a device as sets hold it.
func ifname(name string) []byte {
	out := make([]byte, unix.IFNAMSIZ)
	copy(out, name)
	return out
}

func port(p uint16) []byte { return []byte{byte(p >> 8), byte(p)} }

// padded fills a part of a concatenation up to whole registers.
func padded(parts ...[]byte) (out []byte) {
	for _, p := range parts {
		out = append(out, p...)
		for len(out)%4 != 0 {
			out = append(out, 0)
		}
	}
	return out
}
