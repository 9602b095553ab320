// Runs a graph in onnxruntime-node. Reads {graph, inputs, entries} as JSON from stdin; writes the first output.
// Argument: the folder in which onnxruntime-node is installed.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
const ort = createRequire(process.argv[2] + "/")("onnxruntime-node");
const { graph, inputs, entries } = JSON.parse(readFileSync(0, "utf8"));
const session = await ort.InferenceSession.create(graph, { extra: { session: entries } });
const feeds = {};
for (const [name, rows] of Object.entries(inputs))
  feeds[name] = new ort.Tensor("int64", BigInt64Array.from(rows.flat().map(BigInt)), [rows.length, rows[0].length]);
const [output] = Object.values(await session.run(feeds));
process.stdout.write(JSON.stringify({ dims: output.dims, data: Array.from(output.data) }));
