// NEAR AI's own client against a node: chats with sealed fields, whole and streamed, and signatures.
//
// Two things stand in for what is not here: the outer object of a gateway, which this version of the
// client wants around a report, and the vendors' verdicts on simulated quotes and GPUs. What the client
// checks of a report itself (report data, MRCONFIGID, log, keys), it checks.
import { InferenceClient } from '@nearai/inference-sdk';

const [base, signingAlgo] = process.argv.slice(2);
const direct = globalThis.fetch;
globalThis.fetch = async (input, init) => {
  const request = new Request(input, init);
  const answer = await direct(request);
  if (!request.url.includes('/attestation/report') || !answer.ok) return answer;
  const report = await answer.json();
  const report_data = Buffer.from(report.intel_quote, 'hex').subarray(568, 632).toString('hex');
  return Response.json({
    gateway_attestation: { ...report, report_data },
    model_attestations: [report],
  });
};
const quote = (text) => {
  const body = Uint8Array.from(Buffer.from(text, 'hex').subarray(48));
  return {
    tcbStatus: 'UpToDate',
    advisoryIds: [],
    debugEnabled: false,
    reportData: body.slice(520, 584),
    mrConfigId: body.slice(184, 232),
    rtMr3: body.slice(472, 520),
  };
};
const client = new InferenceClient({
  apiKey: 'sk-none',
  baseUrl: `${base}/v1`,
  signingAlgo,
  gatewayVerification: { verifiers: { quote } },
  modelVerification: { verifiers: { quote, nvidia: async () => {} } },
});
const text = [{ role: 'user', content: 'secret' }];
const parts = [{ role: 'user', content: [{ type: 'text', text: 'secret' }] }];
const tool = { name: 'pay', description: 'pays', parameters: { type: 'object' } };
const tools = [{ type: 'function', function: tool }];
const found = [];
for (const asked of [{ messages: text }, { messages: parts }, { messages: text, tools }]) {
  const answer = await client.chat.completions.create({ model: 'm', ...asked });
  const { signatureKind } = await client.verifyResponse(answer.id);
  found.push([answer.choices[0].message.content, signatureKind]);
}
let said = '';
let id;
for await (const chunk of await client.chat.completions.create({
  model: 'm',
  messages: text,
  stream: true,
})) {
  id = chunk.id;
  said += chunk.choices[0]?.delta.content ?? '';
}
found.push([said, (await client.verifyResponse(id)).signatureKind]);
console.log(JSON.stringify(found));
