// llama.cpp, prebuilt in the npm package node-llama-cpp, as a peer of `make bench NAME=engine`.
//
//   node llama_cpp_peer.mjs PACKAGE_FOLDER MODEL.gguf THREADS
//
// One JSON object per line on standard input, {requests: [{prompt: [token, ...], answer_tokens}], concurrency, flash_attention};
// one per line back, {tokens, seconds, first_token_seconds: [...]}. Requests start in their order, `concurrency` of them at a time, each in a sequence of its own,
// which llama.cpp computes together in one batch (continuous batching). Greedy; the end token does not end an answer.
import path from "node:path";
import readline from "node:readline";
import {pathToFileURL} from "node:url";

const [folder, modelPath, threadsText] = process.argv.slice(2);
const threads = Number(threadsText);
const {getLlama} = await import(pathToFileURL(path.join(folder, "node_modules/node-llama-cpp/dist/index.js")).href);
const llama = await getLlama({gpu: false, build: "never", maxThreads: threads, skipDownload: true, logLevel: "error"});
const model = await llama.loadModel({modelPath, gpuLayers: 0});
const contexts = new Map();

async function contextFor({requests, concurrency, flash_attention: flashAttention}) {
    const key = `${concurrency} ${flashAttention}`;
    if (!contexts.has(key)) {
        contexts.set(key, await model.createContext({sequences: concurrency, contextSize: 256, batchSize: 512, threads, flashAttention}));
    }
    return contexts.get(key);
}

async function run(job) {
    const context = await contextFor(job);
    const queue = [...job.requests];
    const firstTokenSeconds = [];
    let tokens = 0;
    async function lane() {
        const sequence = context.getSequence();
        for (let request = queue.shift(); request !== undefined; request = queue.shift()) {
            const began = performance.now();
            await sequence.clearHistory();
            let count = 0;
            for await (const _ of sequence.evaluate(request.prompt, {temperature: 0, yieldEogToken: true})) {
                count += 1;
                if (count === 1) firstTokenSeconds.push((performance.now() - began) / 1000);
                if (count === request.answer_tokens) break;
            }
            tokens += count;
        }
        sequence.dispose();
    }
    const began = performance.now();
    await Promise.all(Array.from({length: job.concurrency}, lane));
    return {tokens, seconds: (performance.now() - began) / 1000, first_token_seconds: firstTokenSeconds};
}

process.stdout.write(JSON.stringify({ready: true, system: llama.systemInfo, release: llama.llamaCppRelease?.release}) + "\n");
for await (const line of readline.createInterface({input: process.stdin})) {
    process.stdout.write(JSON.stringify(await run(JSON.parse(line))) + "\n");
}
process.exit(0);
