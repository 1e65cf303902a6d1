// One end of a transfer over bare udx-native: node udx.js send|receive BYTES. See main.go.
const UDX = require('udx-native')
const readline = require('readline')

const [role, size] = [process.argv[2], Number(process.argv[3])]
const udx = new UDX()
const socket = udx.createSocket()
socket.bind(0, '127.0.0.1')
const stream = udx.createStream(role === 'send' ? 1 : 2)
console.log(socket.address().port)

readline.createInterface({ input: process.stdin }).once('line', (port) => {
  stream.connect(socket, role === 'send' ? 2 : 1, Number(port), '127.0.0.1')
  stream.on('error', (err) => { console.error(err); process.exit(1) })
  stream.on('close', () => process.exit(0))
  if (role === 'send') send()
  else receive()
})

function send () {
  const chunk = Buffer.alloc(64 * 1024, 1)
  let left = size
  const more = () => {
    while (left > 0) {
      const b = left < chunk.length ? chunk.subarray(0, left) : chunk
      left -= b.length
      if (!stream.write(b)) return stream.once('drain', more)
    }
    stream.end()
  }
  more()
  stream.resume()
}

function receive () {
  let got = 0
  stream.on('data', (b) => { got += b.length })
  stream.on('end', () => {
    console.log(got)
    stream.end()
  })
}
